"""The request log, alone and in a running server."""

from __future__ import annotations

import asyncio
import io
import json
import re
from pathlib import Path
from select import PIPE_BUF
from typing import Any

import pytest

from byoc_server.telemetry.request_log import Record, RequestLog
from tests.onnx_models import identity
from tests.server_process import running

GOOD: Record = ("id-1", 200, 0.0123456, 3, 10, 20, None)
BAD: Record = ("id-2", 400, 0.001, 0, 5, 60, ("invalid_payload", "line 1\nis not\x1b[31m JSON"))
BROKEN: Record = ("\x1b[2Jid\n3", 500, 0.001, 0, 5, 60, None)


class Closed(io.BytesIO):
    """A stream nobody reads any more."""

    def write(self, _: object) -> int:
        raise BrokenPipeError


def written(which: str, log_format: str, *records: Record) -> list[str]:
    stream = io.BytesIO()

    async def log() -> None:
        request_log = RequestLog(which, log_format, stream)
        for record in records:
            request_log.add(record)
        request_log.flush()

    asyncio.run(log())
    return stream.getvalue().decode().splitlines()


def test_json_lines() -> None:
    """Checklist 45, 94."""
    good, bad = [json.loads(line) for line in written("all", "json", GOOD, BAD)]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", good.pop("time"))
    assert good == {
        "level": "info",
        "event": "request",
        "id": "id-1",
        "status": 200,
        "duration_ms": 12.346,
        "rows": 3,
        "request_bytes": 10,
        "response_bytes": 20,
    }
    assert (bad["level"], bad["code"], bad["message"]) == ("warning", "invalid_payload", "line 1\nis not\x1b[31m JSON")


def test_a_line_is_written_soon_with_the_time_of_its_request() -> None:
    """Checklist 94: without another request, and each with a time of its own."""
    stream = io.BytesIO()

    async def log() -> None:
        request_log = RequestLog("all", "json", stream)
        request_log.add(GOOD)
        assert not stream.getvalue()
        await asyncio.sleep(0.002)
        request_log.extend([GOOD, GOOD])
        async with asyncio.timeout(30):
            while stream.getvalue().count(b"\n") < 3:
                await asyncio.sleep(0.001)

    asyncio.run(log())
    first, *others = [json.loads(line)["time"] for line in stream.getvalue().splitlines()]
    assert len({*others}) == 1
    assert first < others[0]


@pytest.mark.parametrize(("log_format", "shown"), [("json", '"id":"%s"'), ("text", "id='%s'")])
@pytest.mark.parametrize("status", [200, 503])
def test_a_request_without_an_id_gets_one(log_format: str, shown: str, status: int) -> None:
    """Checklist 45: the same in the log and in the answer."""
    stream = io.BytesIO()

    async def log() -> tuple[str, str]:
        request_log = RequestLog("all", log_format, stream)
        numbers = request_log.ids.next(), request_log.ids.next()
        request_log.extend([(number, status, *GOOD[2:]) for number in numbers])
        request_log.flush()
        first, second = (request_log.ids.text(number) for number in numbers)
        return first, second

    ids = asyncio.run(log())
    assert ids[0] != ids[1]
    lines = stream.getvalue().decode().splitlines()
    assert all(shown % request_id in line for request_id, line in zip(ids, lines, strict=True))


@pytest.mark.parametrize(("which", "lines"), [("all", 2), ("errors", 0), ("off", 0)])
def test_what_is_logged_of_requests_that_went_well(which: str, lines: int) -> None:
    stream = io.BytesIO()

    async def log() -> None:
        request_log = RequestLog(which, "json", stream)
        request_log.extend([GOOD, GOOD])
        request_log.flush()

    asyncio.run(log())
    assert stream.getvalue().count(b"\n") == lines


def test_after_the_end_a_line_is_written_at_once() -> None:
    """Checklist 94: requests that the server could not wait for are answered, and logged, last of all."""
    stream = io.BytesIO()

    async def log() -> None:
        request_log = RequestLog("all", "json", stream)
        request_log.add(GOOD)
        request_log.close()
        assert stream.getvalue().count(b"\n") == 1
        request_log.add(BAD)
        assert stream.getvalue().count(b"\n") == 2

    asyncio.run(log())


def test_text_lines_cannot_be_forged() -> None:
    """Checklist 94: one event a line, whatever a client writes into its id or its body."""
    good, bad, broken = written("all", "text", GOOD, BAD, BROKEN)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} info    request 200 12.3 ms rows=3 in=10 B out=20 B id='id-1'", good)
    assert "warning request 400" in bad
    assert "\x1b" not in bad + broken
    assert r"id='\x1b[2Jid\n3'" in broken


@pytest.mark.parametrize(("which", "statuses"), [("all", [200, 400, 500]), ("errors", [400, 500]), ("off", [])])
def test_what_is_logged(which: str, statuses: list[int]) -> None:
    assert [json.loads(line)["status"] for line in written(which, "json", GOOD, BAD, BROKEN)] == statuses


def test_many_records() -> None:
    """Checklist 94."""
    assert len(written("all", "json", *[GOOD] * 2000)) == 2000


def test_writes_are_small_enough_to_stay_whole() -> None:
    """Checklist 94: a pipe takes up to PIPE_BUF bytes without another process' bytes between them."""
    pieces: list[bytes] = []

    class Pipe(io.BytesIO):
        def write(self, piece: Any) -> int:
            pieces.append(bytes(piece))
            return len(pieces[-1])

    async def log() -> None:
        request_log = RequestLog("all", "json", Pipe())
        for number in range(1000):
            request_log.add((f"id-{number}", *GOOD[1:]))
        request_log.add(("x" * 5000, *GOOD[1:]))
        request_log.add(GOOD)
        request_log.flush()

    asyncio.run(log())
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert [len(piece) > PIPE_BUF for piece in pieces].count(True) == 1
    ids = [json.loads(line)["id"] for line in b"".join(pieces).splitlines()]
    assert ids == [f"id-{number}" for number in range(1000)] + ["x" * 5000, "id-1"]
    assert len(pieces) < 100


def test_a_file_takes_what_has_gathered_at_once(tmp_path: Path) -> None:
    writes: list[int] = []

    class File(io.FileIO):
        def write(self, piece: Any) -> int:
            writes.append(len(piece))
            return super().write(piece) or 0

    async def log(stream: Any) -> None:
        request_log = RequestLog("all", "json", stream)
        for _ in range(100):
            request_log.add(GOOD)
        request_log.flush()

    with File(tmp_path / "log", "w") as stream:
        asyncio.run(log(stream))
    assert len(writes) == 1
    assert len((tmp_path / "log").read_bytes().splitlines()) == 100


def test_a_log_nobody_reads_does_not_stop_the_server() -> None:
    """Checklist 41."""

    async def log() -> None:
        request_log = RequestLog("all", "json", Closed())
        for _ in range(2):
            request_log.add(GOOD)
            request_log.flush()

    asyncio.run(log())


def test_the_text_format_of_a_server(tmp_path: Path) -> None:
    """Checklist 94, 97: readable, and one line an event."""
    model = identity(tmp_path / "model.onnx")
    with running("--model", str(model), "--log-format", "text", "--request-log", "errors") as server:
        assert server.invoke("[[1, 2, 3, 4]]").status_code == 200
        assert server.invoke("{").status_code == 400
        assert server.stop() == 0
        lines = server.log.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3} (info|warning) ", line) for line in lines)
    assert "cuda-compat" in lines[0]
    assert "starting on port" in lines[1]
    assert "ready" in lines[2]
    (request,) = [line for line in lines if " request " in line]
    assert " request 400 " in request
    assert "request 400" in lines[3]


def test_request_log_off(tmp_path: Path) -> None:
    """Checklist 94."""
    model = identity(tmp_path / "model.onnx")
    with running("--model", str(model), "--request-log", "off") as server:
        assert server.invoke("[[1, 2, 3, 4]]").status_code == 200
        assert server.invoke("{").status_code == 400
        assert server.stop() == 0
        assert server.events("request") == []
