"""The benchmarks' own parts, and that each of them runs."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks import environment, models, offline, open_loop, paced, report, wrk
from benchmarks.fuzz import __main__ as fuzz_command
from benchmarks.fuzz import decoders, findings
from benchmarks.processes import ENVIRONMENT, process_tree, stat_fields
from byoc_server.codecs import octet_stream
from byoc_server.codecs.base import CodecEntry
from byoc_server.errors import InferenceFailed, InvalidPayload
from tests.server_process import wait_for

RESULT = (
    "Running 1s test @ http://127.0.0.1:8080/invocations\n  1 threads and 64 connections\n"
    "  15250 requests in 1.01s, 2.71MB read\n"
    "result requests=15250 duration_us=1010000 p50_us=4120 p99_us=9800 connect=0 read=0 write=0 status=0 timeout=0\n"
)


def run_model(path: Path, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    (output,) = session.run(None, {"input": batch})
    assert isinstance(output, np.ndarray)
    return output


def test_mlp_gives_probabilities(tmp_path: Path) -> None:
    output = run_model(models.mlp(tmp_path / "mlp.onnx", models.TINY_MLP), (5, 16))
    assert output.shape == (5, 3)
    assert np.allclose(output.sum(axis=1), 1)


def test_models_are_the_same_every_time(tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    first, second = (models.mlp(path, (4, 3)).read_bytes() for _ in range(2))
    assert first == second


def test_residual_network_keeps_its_activations_finite(tmp_path: Path) -> None:
    path = models.resnet(tmp_path / "resnet.onnx", stages=(2, 2), width=8, pixels=32, classes=10)
    output = run_model(path, (3, 3, 32, 32))
    assert output.shape == (3, 10)
    assert np.isfinite(output).all()
    assert 1e-3 < np.abs(output).max() < 1e3


def test_the_encoder_passes_over_what_its_mask_hides(tmp_path: Path) -> None:
    path = models.encoder(tmp_path / "encoder.onnx", layers=2, width=32, heads=4, words=100, positions=16)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def embed(hidden: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        ids = np.random.default_rng(1).integers(1, 100, (3, 10))
        tensors = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        hiding = [np.pad(array, ((0, 0), (0, hidden))) for array in tensors.values()]
        (output,) = session.run(None, dict(zip(tensors, hiding, strict=True)))
        assert isinstance(output, np.ndarray)
        return output

    assert embed(0).shape == (3, 32)
    assert 1e-2 < np.abs(embed(0)).max() < 1e2
    np.testing.assert_allclose(embed(6), embed(0), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_encoder_of_sentence_embeddings_has_the_size_of_a_real_one(tmp_path: Path) -> None:
    """6 layers of 384 * 384 * 12 weights, and 30,000 words of 384 (MiniLM-L6-H384: 22.7 million)."""
    graph = onnx.load(str(models.encoder6(tmp_path / "encoder.onnx"))).graph
    weights = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    assert 22.0e6 < weights < 23.0e6


@pytest.mark.slow
def test_resnet50_has_the_size_of_the_real_one(tmp_path: Path) -> None:
    """25.5 million weights and biases without batch normalisation; 53 convolutions."""
    path = models.resnet50(tmp_path / "resnet50.onnx")
    graph = onnx.load(str(path)).graph
    weights = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    assert sum(node.op_type == "Conv" for node in graph.node) == 53
    assert 25.4e6 < weights < 25.6e6
    output = run_model(path, (1, 3, 224, 224))
    assert output.shape == (1, 1000)
    assert np.isfinite(output).all()


def test_wrk_figures_are_in_seconds() -> None:
    load = wrk.parse(RESULT)
    assert load == wrk.Load(15250, 1.01, 0.00412, 0.0098)
    assert load.requests_per_s == pytest.approx(15099, abs=1)


@pytest.mark.parametrize("kind", ["connect", "read", "write", "status", "timeout"])
def test_any_error_of_wrk_fails_the_benchmark(kind: str) -> None:
    with pytest.raises(report.BenchmarkError, match=f"'{kind}': 7"):
        wrk.parse(RESULT.replace(f"{kind}=0", f"{kind}=7"))


def test_no_answers_fail_the_benchmark() -> None:
    with pytest.raises(report.BenchmarkError, match="with errors: none"):
        wrk.parse(RESULT.replace("requests=15250", "requests=0"))


def test_a_broken_wrk_shows_its_output() -> None:
    with pytest.raises(report.BenchmarkError, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_a_missing_wrk_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(report.BenchmarkError, match="apt-get install wrk"):
        wrk.load(1, wrk.Request("text/csv", b"1"), 1, 1, 0)


def test_lua_strings_carry_every_byte() -> None:
    content = bytes(range(256)) + b'0"\\\n'
    literal = wrk.lua_string(content)
    assert bytes(int(code) for code in re.findall(r"\\(\d{3})", literal)) == content
    assert re.fullmatch(r'"(\\\d{3})*"', literal)


def test_ratios_are_taken_round_by_round() -> None:
    """A round in which the machine was three times slower does not move the ratio."""
    assert report.median_ratio([10, 30, 12], [5, 15, 6]) == 2


def test_goals_know_their_direction() -> None:
    assert report.Goal("CPU", 1.7, 1.8).met
    assert not report.Goal("CPU", 1.9, 1.8).met
    assert report.Goal("rows", 0.9, 0.85, at_most=False).met
    assert report.Goal("rows", 0.8, 0.85, at_most=False).describe().startswith("MISSED rows: 0.80 (goal >= 0.85)")


def test_tables_are_markdown() -> None:
    rows = [{"format": "json", "p50_us": 4120.4}, {"format": "x-npy", "p50_us": 0.5}]
    assert report.table(rows).splitlines() == [
        "| format | p50_us |",
        "| ------ | ------ |",
        "| json   | 4,120  |",
        "| x-npy  | 0.5    |",
    ]


def test_the_stamp_names_versions_but_no_machine_and_no_path() -> None:
    stamp = environment.stamp()
    assert set(stamp) == {"date", "cpu", "usable_cores", "kernel", "python", "packages", "commit", "dirty"}
    assert isinstance(stamp["packages"], dict)
    assert stamp["packages"]["onnxruntime"] == ort.__version__
    assert str(environment.ROOT) not in json.dumps(stamp)


def test_the_cpu_has_a_name_also_where_the_kernel_gives_none() -> None:
    assert environment.cpu_model("processor\t: 0\nmodel name\t: Some CPU\n") == "Some CPU"
    assert environment.cpu_model("processor\t: 0\n") == os.uname().machine


def test_a_process_tree_holds_children() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert process_tree(os.getpid())[0] == os.getpid()
        assert child.pid in process_tree(os.getpid())
        child.communicate(b"\n")


def test_stat_files_of_programs_with_odd_names_are_read(tmp_path: Path) -> None:
    path = tmp_path / "stat"
    path.write_text("7 (odd ) name) S 1 2 3")
    assert stat_fields(path) == ["S", "1", "2", "3"]


@contextlib.contextmanager
def answering(*pieces: bytes) -> Iterator[int]:
    """A server that answers whatever comes with the same bytes, piece by piece. Yields its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(65536):
                for piece in pieces:
                    self.request.sendall(piece)
                    time.sleep(0.001)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_paced_client_reads_whole_answers_and_keeps_its_pace() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 3\r\n\r\na", b"bc") as port:
        latencies_s = paced.latencies_s(port, paced.ping(), rate_per_s=100, duration_s=0.1)
    assert 0 < len(latencies_s) <= 11
    assert min(latencies_s) > 0.002


def test_a_client_beside_asks_on_until_the_end() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as port:
        with paced.back_to_back(port, paced.invocation("text/csv", b"1,2")) as taken_s:
            wait_for(lambda: len(taken_s) > 2, "three answers")
        answers = len(taken_s)
    assert len(taken_s) == answers


def test_other_answers_than_200_fail_the_benchmark() -> None:
    with answering(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n") as port:
        with pytest.raises(report.BenchmarkError, match="503"):
            paced.latencies_s(port, paced.ping(), rate_per_s=100, duration_s=0.1)
        with (
            pytest.raises(report.BenchmarkError, match=r"beside failed: .*503"),
            paced.back_to_back(port, paced.ping()),
        ):
            pass


def test_random_arrivals_have_their_rate_and_come_again_with_their_seed() -> None:
    due_s = open_loop.poisson_s(rate_per_s=1000, duration_s=5, seed=1)
    assert due_s == sorted(due_s)
    assert len(due_s) == 5000
    assert due_s[-1] == pytest.approx(5, rel=0.1)
    assert due_s == open_loop.poisson_s(rate_per_s=1000, duration_s=5, seed=1)
    assert due_s != open_loop.poisson_s(rate_per_s=1000, duration_s=5, seed=2)


def test_an_open_loop_reads_whole_answers() -> None:
    with answering(b"HTTP/1.1 200 OK\r\ncontent-le", b"ngth: 3\r\n\r\na", b"bc") as port:
        replies = open_loop.send(port, paced.ping(), [0.0, 0.01, 0.01], connections=2, patience_s=20)
    assert len(replies.latencies_s()) == 3
    assert not replies.refusals_s()
    assert replies.unanswered == 0
    assert 0 < replies.p99_s() < 20


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    """All are due at once on one connection: each waits for those before it, and left late."""
    with answering(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n", b"\r\n") as port:
        replies = open_loop.send(port, paced.ping(), [0.0] * 5, connections=1, patience_s=20)
    refusals_s = replies.refusals_s()
    assert len(refusals_s) == 5
    assert refusals_s == sorted(refusals_s)
    assert refusals_s[-1] > 5 * 0.001
    assert replies.late_p99_s() > 4 * 0.001
    assert replies.p99_s() == math.inf


def test_an_open_loop_gives_up_on_answers_that_do_not_come() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n") as port:
        replies = open_loop.send(port, paced.ping(), [0.0, 0.0], connections=1, patience_s=0.05)
    assert replies.unanswered == 2
    assert replies.p99_s() == math.inf


def test_other_answers_fail_an_open_loop() -> None:
    with (
        answering(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n") as port,
        pytest.raises(report.BenchmarkError, match="500"),
    ):
        open_loop.send(port, paced.ping(), [0.0], connections=1, patience_s=20)


@pytest.mark.parametrize(("count", "slow", "expected"), [(100, 1, 1), (100, 2, 9), (1, 0, 1), (1000, 10, 1)])
def test_p99_leaves_no_more_than_a_hundredth_above(count: int, slow: int, expected: int) -> None:
    assert open_loop.p99([9] * slow + [1] * (count - slow)) == expected


def test_the_offline_loop_tells_rows_and_cpu_time(tmp_path: Path) -> None:
    model_path = models.mlp(tmp_path / "mlp.onnx", models.TINY_MLP)
    with offline.looping(model_path, 1, os.sched_getaffinity(0)) as loop:
        pace = loop.run(rows=4, seconds=0.05)
        best_rows, rows_per_s = loop.sweep("MLP", seconds=0.001)
    assert pace.rows_per_s > 0
    assert pace.cpu_us_per_row > 0
    assert rows_per_s[best_rows] == max(rows_per_s.values())


def test_findings_are_told_apart_and_the_shortest_input_of_each_is_kept(tmp_path: Path) -> None:
    found = findings.Findings(tmp_path)
    for data, reason in ((b"long", "7 bytes"), (b"s", "12 bytes"), (b"medium", "7 bytes"), (b"other", "no text")):
        found.keep(data, findings.FindingError(reason))
    kept = {path.read_bytes(): path.with_suffix(".txt").read_text() for path in tmp_path.iterdir() if not path.suffix}
    assert kept.keys() == {b"s", b"other"}
    assert "12 bytes" in kept[b"s"]
    assert "no text" in kept[b"other"]


def lying_decoder(result: object) -> CodecEntry:
    """A row of the table whose decoder gives that, or raises it."""

    def decode(*arguments: object) -> object:
        if isinstance(result, Exception):
            raise result
        return result

    return cast(CodecEntry, SimpleNamespace(media_type="x/y", load=lambda: SimpleNamespace(decode=decode)))


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({}, "not the inputs"),
        ({"x": np.zeros((1, 4), np.float64)}, "float64"),
        ({"x": np.zeros((1, 3), np.float32)}, r"\(1, 3\)"),
        ({"x": np.zeros((0, 4), np.float32)}, r"\(0, 4\)"),
        ({"x": np.zeros((4, 2), np.float32).T[:, ::1]}, r"\(2, 4\)"),
        ({"x": np.zeros((2**18 + 1, 4), np.float32)}, "larger than allowed"),
        (InferenceFailed("x"), "status 500"),
        (InvalidPayload("x" * 1000), "too long"),
        (InvalidPayload("x", got="y" * 5000), "too long"),
        (InvalidPayload(""), "empty"),
    ],
)
def test_fuzzing_finds_what_a_decoder_should_not_do(result: object, reason: str) -> None:
    with pytest.raises(findings.FindingError, match=reason):
        decoders.check_decoder(lying_decoder(result), bytes(3))


def test_fuzzing_finds_memory_that_grows_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks_bytes = iter([2**28, 2**29])
    monkeypatch.setattr(decoders, "_peak_bytes", lambda: next(peaks_bytes))
    with pytest.raises(findings.FindingError, match="memory"):
        decoders.check_decoder(lying_decoder(InvalidPayload("x")), bytes(3))


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris, which has no wheel here")
def test_a_target_is_fuzzed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.fuzz", "application/octet-stream", "--seconds", "1", "--seed", "1"]
    done = subprocess.run(
        [*command, "--findings", str(tmp_path / "findings"), "--corpus", str(tmp_path / "corpus")],
        cwd=environment.ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(
        r"application/octet-stream: \d+ inputs, \d+ places of the code reached, no findings\n", done.stdout
    )
    assert any((tmp_path / "corpus" / "application-octet-stream").iterdir())


def test_fuzzing_without_atheris_says_that_nothing_was_fuzzed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["fuzz"])
    assert fuzz_command.main() == 0
    assert "NOTHING WAS FUZZED" in capsys.readouterr().err


def test_a_finding_is_replayed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "finding"
    path.write_bytes(b"\0\0\0" + bytes(16))
    monkeypatch.setattr(sys, "argv", ["fuzz", "application/octet-stream", "--replay", str(path)])
    assert fuzz_command.main() == 0
    monkeypatch.setattr(octet_stream, "decode", lambda *arguments: {})
    with pytest.raises(findings.FindingError):
        fuzz_command.main()


def test_an_unknown_target_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz", "text/none"])
    with pytest.raises(SystemExit):
        fuzz_command.main()
    assert "no such target: text/none; there are application/json" in capsys.readouterr().err


def run_quickly(name: str, output: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--output", str(output)]
    done = subprocess.run(
        command, cwd=environment.ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| ")
    result = json.loads(output.read_text())
    assert result["benchmark"] == name
    assert result["quick"]
    assert result["rows"]
    assert result["rounds"]
    assert result["environment"]["cpu"]


LONG = ("bench_defaults", "bench_overload", "bench_server_scenario", "bench_split", "soak")
"""Benchmarks whose short run is no short one."""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs the load generator wrk")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize(
    "name",
    [
        "bench_batching",
        "bench_overhead",
        "bench_startup",
        *[pytest.param(name, marks=pytest.mark.soak) for name in LONG],
    ],
)
def test_benchmarks_run(name: str, tmp_path: Path) -> None:
    run_quickly(name, tmp_path / "results" / f"{name}.json")


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("name", ["bench_codecs", "bench_lengths", "bench_stalls"])
def test_benchmarks_without_wrk_run(name: str, tmp_path: Path) -> None:
    run_quickly(name, tmp_path / "results" / f"{name}.json")
