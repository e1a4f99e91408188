"""Content codings: undone on the way in, applied on the way out, and bounded."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message

from byoc_server.batching.entry import Reply
from byoc_server.config import Settings
from byoc_server.core.client import ModelState, ModelStatus
from byoc_server.errors import InvalidPayload, Overloaded, PayloadTooLarge, UnsupportedContentEncoding
from byoc_server.http import content_coding
from byoc_server.http.body import BodyBudget
from byoc_server.http.content_coding import (
    LARGE_ANSWER_BYTES,
    choose_answer_coding,
    decode,
    decode_small,
    encode_answer,
    parse_content_encoding,
)
from byoc_server.http.inference import InferencePath
from byoc_server.http.invocations import InvocationsEndpoint
from byoc_server.models.adapter import Adapter
from byoc_server.telemetry.request_log import RequestLog
from byoc_server.types import Signature, Tensors, TensorSpec
from tests.onnx_models import identity
from tests.server_process import Answer, ServerProcess, post, read_answer, running, wait_for

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LAWS = settings(deadline=None, max_examples=300, derandomize=True)
MIB = 1024 * 1024
VARY = (b"vary", b"accept-encoding")


def bare_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)  # the time of day would be in the names of the tests, which must not differ


def checked_zstd(data: bytes) -> bytes:
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


CODE: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzipped,
    "x-gzip": gzipped,
    "deflate": zlib.compress,
    "zstd": checked_zstd,
}


def undo(body: bytes, header: str, limit: int = 100 * MIB) -> bytes:
    return decode(body, parse_content_encoding(header), limit, lambda size: None)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("gzip", ["gzip"]),
        ("GZip", ["gzip"]),
        ("x-gzip", ["gzip"]),
        (" deflate\t", ["deflate"]),
        ("zstd", ["zstd"]),
        ("", []),
        ("identity", []),
        (" , ,", []),
        ("gzip, identity,, zstd", ["gzip", "zstd"]),
        ("identity, " * 20 + "gzip", ["gzip"]),
    ],
)
def test_codings_of_a_body(header: str, names: list[str]) -> None:
    assert [coding.name for coding in parse_content_encoding(header)] == names


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("br", "'br' is not supported; use gzip, deflate, zstd or none"),
        ("gzip, br", "'gzip, br'"),
        ("gzip;q=1", "'gzip;q=1'"),
        ("gzip gzip", "'gzip gzip'"),
        ("aws-chunked", "'aws-chunked'"),
        ("gzip, gzip, gzip", "there may be 2 codings at most"),
        ("gzip\x00", "'gzip\\x00'"),
        ("identity, " * 1000, "..."),
    ],
)
def test_codings_that_are_refused(header: str, part: str) -> None:
    with pytest.raises(UnsupportedContentEncoding) as caught:
        parse_content_encoding(header)
    assert part in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.headers() == [(b"accept-encoding", b"gzip, deflate, zstd")]
    assert caught.value.details == {"accepted": ["gzip", "deflate", "zstd"]}


@pytest.fixture
def _without_zstd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(content_coding, "_ZSTD_MODULE", "no_such_module")
    content_coding._zstd.cache_clear()
    content_coding._codings.cache_clear()
    yield
    content_coding._zstd.cache_clear()
    content_coding._codings.cache_clear()


@pytest.mark.usefixtures("_without_zstd")
def test_without_its_library_zstd_is_refused_and_the_extra_named() -> None:
    with pytest.raises(
        UnsupportedContentEncoding, match=r"\(it needs byoc-server\[zstd\]\); use gzip, deflate"
    ) as caught:
        parse_content_encoding("zstd")
    assert caught.value.headers() == [(b"accept-encoding", b"gzip, deflate")]
    assert choose_answer_coding("zstd, identity;q=0") is None
    assert choose_answer_coding("zstd, gzip;q=0.5, identity;q=0") == "gzip"


SIZES = (0, 1, 100, 65535, 65536, 65537, 200_000)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "header", [*CODE, "gzip, deflate", "deflate, x-gzip", "gzip, zstd", "zstd, gzip", "gzip, gzip"]
)
def test_every_coding_is_undone(header: str, size: int) -> None:
    """With much to read and little to write, and the other way round; in one piece and in several."""
    for plain in (noise(size), b"a" * size):
        body = plain
        for name in header.split(", "):
            body = CODE[name](body)
        assert undo(body, header) == plain
        small = decode_small(body, parse_content_encoding(header), MIB)
        assert small in (plain, None)
        assert (small is not None) == (size <= 100 and "," not in header) or size in (65535, 65536)


@pytest.mark.parametrize("size", SIZES)
def test_bare_deflate_is_undone(size: int) -> None:
    """RFC 9110, section 8.4.1.2: some clients leave the zlib format away."""
    for plain in (noise(size), b"a" * size):
        assert undo(bare_deflate(plain), "deflate") == plain


def skippable(size: int) -> bytes:
    return struct.pack("<II", 0x184D2A53, size) + bytes(size)


@pytest.mark.parametrize(
    ("header", "body", "plain"),
    [
        ("gzip", gzipped(b"ab") + gzipped(b"") + gzipped(b"cd"), b"abcd"),
        ("gzip", gzipped(b"a" * 65536) * 3, b"a" * 65536 * 3),
        ("zstd", checked_zstd(b"ab") + zstd.compress(b"") + zstd.compress(b"cd"), b"abcd"),
        ("zstd", skippable(70_000) + zstd.compress(b"ab") + skippable(0), b"ab"),
        ("zstd", zstd.compress(noise(MIB) * 10, level=19), noise(MIB) * 10),
        ("identity", b"ab", b"ab"),
    ],
    ids=["members", "whole pieces", "frames", "skippable frames", "largest window", "identity"],
)
def test_streams_that_follow_one_another_are_one_body(header: str, body: bytes, plain: bytes) -> None:
    assert undo(body, header) == plain


WIDE = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 24})
WIDE_FRAME = WIDE.compress(bytes(100)) + WIDE.flush()
LONG = gzipped(noise(70_000))


@pytest.mark.parametrize(
    ("header", "body", "begin", "reason"),
    [
        *[(name, b"", 0, "it is cut short at byte 0") for name in CODE],
        ("gzip", b"[[1, 2]]", 0, "incorrect header check; it shows by byte 8"),
        ("zstd", b"[[1, 2]]", 0, "Unknown frame descriptor; it shows by byte 8"),
        ("deflate", b"[[1, 2]]", 0, "it is cut short at byte 8"),
        ("deflate", b"\xff" * 8, 0, "invalid block type; it shows by byte 8"),
        ("gzip", gzipped(b"ab")[:-1], 0, "it is cut short at byte 21"),
        ("gzip", gzipped(b"ab") + gzipped(b"cd")[:-5], 22, "it is cut short at byte 39"),
        ("gzip", gzipped(b"ab") + b"\n", 22, "it is cut short at byte 23"),
        ("gzip", gzipped(b"ab") + b"more", 22, "incorrect header check; it shows by byte 26"),
        ("gzip", gzipped(b"ab")[:-8] + bytes(8), 0, "incorrect data check"),
        ("gzip", gzipped(b"ab")[:-4] + bytes(4), 0, "incorrect length check"),
        ("gzip", LONG[:-8] + bytes(8), 0, f"incorrect data check; it shows by byte {len(LONG)}"),
        ("gzip", LONG[:65536], 0, "it is cut short at byte 65536"),
        ("deflate", zlib.compress(b"ab")[:-1], 0, "it is cut short at byte 9"),
        ("deflate", zlib.compress(b"ab")[:-1] + b"\0", 0, "incorrect data check"),
        ("deflate", zlib.compress(b"ab") + b"more", 10, "there is more after its end"),
        ("deflate", zlib.compress(b"ab") * 2, 10, "there is more after its end"),
        ("deflate", bare_deflate(b"ab") + b"more", 4, "there is more after its end"),
        ("deflate", b"\x78\x20" + b"dict" + b"ab", 0, ""),
        ("zstd", zstd.compress(b"ab")[:-1], 0, "it is cut short at byte 10"),
        ("zstd", checked_zstd(b"ab")[:-1] + b"\0", 0, "Restored data doesn't match checksum"),
        ("zstd", zstd.compress(b"ab") + b"more", 11, "Unknown frame descriptor"),
        ("zstd", WIDE_FRAME, 0, "Frame requires too much memory for decoding"),
        ("gzip", gzipped(b"") * 10_001, 200_000, "there is more after its end"),
        ("deflate, gzip", gzipped(b"\xff\xff"), 0, "invalid block type"),
        ("gzip, gzip", gzipped(gzipped(b"ab") + b"c"), 22, "it is cut short at byte 23"),
    ],
)
def test_damaged_data_is_a_client_error_that_names_coding_and_byte(
    header: str, body: bytes, begin: int, reason: str
) -> None:
    """Truncated, wrong checksum, trailing garbage, empty."""
    with pytest.raises(InvalidPayload) as caught:
        undo(body, header)
    name = header.removeprefix("x-").partition(",")[0]
    assert caught.value.message.startswith(f"the {name} data that begins at byte {begin} cannot be decoded: {reason}")
    assert caught.value.details == {"field": f"byte {begin}", "expected": f"Content-Encoding {name}"}
    assert caught.value.__context__ is None  # it would keep all that was worked on
    assert decode_small(body, parse_content_encoding(header), MIB) is None


@pytest.mark.parametrize("name", CODE)
def test_what_comes_out_is_limited(name: str) -> None:
    """To the byte, in one piece and in several."""
    for limit in (1, 1000, 65536, 200_000):
        assert undo(CODE[name](b"a" * limit), name, limit) == b"a" * limit
        more = CODE[name](b"a" * (limit + 1))
        with pytest.raises(PayloadTooLarge, match=f"limit of {limit} decoded bytes") as caught:
            undo(more, name, limit)
        assert caught.value.details == {"limit_bytes": limit}
        assert decode_small(more, parse_content_encoding(name), limit) is None


def test_what_lies_between_two_codings_is_limited() -> None:
    """Ten thousand times nothing: the outer coding makes much of which the inner one makes little."""
    with pytest.raises(PayloadTooLarge):
        undo(gzipped(skippable(2 * MIB)), "zstd, gzip", MIB)


@pytest.mark.parametrize("header", ["gzip", "deflate", "zstd", "gzip, gzip", "gzip, zstd"])
def test_a_bomb_is_never_held(header: str) -> None:
    """What is in memory at any time is the limit, an eighth of it to grow, and a few pieces."""
    body = bytes(64 * MIB)
    for name in header.split(", "):
        body = CODE[name](body)
    codings = parse_content_encoding(header)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            decode(body, codings, 4 * MIB, lambda size: None)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB * 9 / 8 + MIB / 2
    finally:
        tracemalloc.stop()


def test_a_whole_body_is_held_once() -> None:
    body = gzipped(bytes(8 * MIB))
    codings = parse_content_encoding("gzip")
    tracemalloc.start()
    try:
        assert len(decode(body, codings, 8 * MIB, lambda size: None)) == 8 * MIB
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB * 9 / 8 + MIB / 2
    finally:
        tracemalloc.stop()


def test_who_holds_the_bytes_is_asked_before_they_are_kept() -> None:
    asked: list[int] = []

    def hold(size: int) -> None:
        asked.append(size)
        if size > 200_000:
            raise Overloaded("too much")

    with pytest.raises(Overloaded):
        decode(gzipped(bytes(10 * MIB)), parse_content_encoding("gzip"), 100 * MIB, hold)
    assert asked == [65536, 131072, 196608, 262144]


HEADERS = st.lists(st.sampled_from(["gzip", "deflate", "zstd"]), min_size=1, max_size=2).map(", ".join)


@LAWS
@given(st.binary(max_size=300), HEADERS, st.data())
def test_any_bytes_are_decoded_or_refused(tail: bytes, header: str, data: st.DataObject) -> None:
    """Wild bytes, and good ones that were bent in one place; on the loop and on a thread the same."""
    body = b"some text " * 20
    for name in header.split(", "):
        body = CODE[name](body)
    place = data.draw(st.integers(0, len(body)))
    for damaged in (tail, body[:place] + tail, body[:place] + tail[:1] + body[place + 1 :]):
        codings = parse_content_encoding(header)
        small = decode_small(damaged, codings, 1000)
        try:
            plain = decode(damaged, codings, 1000, lambda size: None)
        except (InvalidPayload, PayloadTooLarge):
            assert small is None
        else:
            assert len(plain) <= 1000
            assert small in (plain, None)


@LAWS
@given(st.binary(max_size=2000), HEADERS, st.integers(0, 40))
def test_what_was_coded_comes_back(piece: bytes, header: str, times: int) -> None:
    plain = body = piece * times
    for name in header.split(", "):
        body = CODE[name](body)
    assert undo(body, header) == plain


@LAWS
@given(
    st.text(st.characters(max_codepoint=255), max_size=60)
    | st.lists(st.sampled_from(list(",; =q\t01.gzipdeflatzsx-*"))).map("".join)
)
def test_any_header_is_understood_or_refused(text: str) -> None:
    with contextlib.suppress(UnsupportedContentEncoding):
        assert len(parse_content_encoding(text)) <= 2
    assert choose_answer_coding(text) in (None, "gzip", "zstd")


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        # what clients send by themselves, who would take a plain answer as gladly
        (None, None),
        ("", None),
        ("identity", None),
        ("gzip", None),
        ("gzip, deflate", None),
        ("gzip, deflate, br, zstd", None),
        ("*", None),
        ("gzip;q=0.5", None),
        ("gzip;q=0.5, identity;q=0.5", None),
        ("gzip;q=0.5, identity", None),
        ("gzip;q=0, identity;q=0", None),
        ("*;q=0", None),
        ("identity;q=0", None),
        ("br, identity;q=0", None),
        ("deflate, identity;q=0", None),
        # who asks
        ("gzip, identity;q=0.5", "gzip"),
        ("x-gzip, identity;q=0.5", "gzip"),
        ("gzip;q=1.0, identity; q=0.5, *;q=0", "gzip"),
        ("gzip;q=.2,identity;q=0", "gzip"),
        ("GZIP ; Q=1 , Identity ;q=0.001", "gzip"),
        ("gzip, *;q=0", "gzip"),
        ("gzip, *;q=0.1", "gzip"),
        ("identity;q=0, *", "zstd"),
        ("identity;q=0.5, *;q=0.6, zstd;q=0.1", "gzip"),
        ("gzip, zstd, identity;q=0", "zstd"),
        ("gzip;q=0.9, zstd;q=0.8, identity;q=0", "gzip"),
        ("zstd;q=0, gzip;q=0.1, *;q=0", "gzip"),
        # malformed parts say nothing
        ("gzip;q=x, zstd;q=1;q=1, identity;q=0", None),
        ("gzip;level=9, identity;q=0", None),
        ("gzip;q=, identity;q=0", None),
        ("gzip;;, =;q=1, identity;q=0, zstd", "zstd"),
        ("gzip;q=7, identity;q=2", None),
        ("a, " * 200 + "gzip, identity;q=0", None),
    ],
)
def test_answers_are_coded_for_who_prefers_that(header: str | None, coding: str | None) -> None:
    """RFC 9110, section 12.5.3."""
    assert choose_answer_coding(header) == coding


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_an_answer_is_coded_if_that_is_worth_it(coding: str) -> None:
    undone: Mapping[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "zstd": zstd.decompress}
    text = b"0.25, " * (LARGE_ANSWER_BYTES // 6 + 1)
    body, headers = encode_answer(text, coding)
    assert undone[coding](body) == text
    assert len(body) < len(text) / 2
    assert list(headers) == [VARY, (b"content-encoding", coding.encode())]
    assert encode_answer(text, None) == (text, (VARY,))
    floats = noise(LARGE_ANSWER_BYTES)
    assert encode_answer(floats, coding) == (floats, (VARY,))
    small = b"0" * (LARGE_ANSWER_BYTES - 1)
    assert encode_answer(small, coding) == (small, ())


class Client:
    """Keeps every request until it is told the answer."""

    def __init__(self) -> None:
        self.status = ModelStatus(ModelState.READY)
        signature = Signature((TensorSpec("x", np.dtype(np.float32), (None, 2)),), ())
        self.adapter = Adapter(signature, signature)
        self.replies: list[Reply] = []

    def infer(
        self,
        tensors: Tensors,
        rows: int,
        reply: Reply,
        deadline_s: float,
        urgent: bool = False,
        together: Any = None,
    ) -> Any:
        self.replies.append(reply)
        return lambda: None


def test_decoded_bytes_are_held_until_the_answer_and_others_are_refused_meanwhile() -> None:
    """They are counted while they are there, also where few bytes came in one piece."""
    rows = [[1, 2]] * 20_000
    plain = json.dumps(rows).encode()
    budget = BodyBudget(MIB, len(plain) + 1000)

    async def invoke(endpoint: InvocationsEndpoint) -> int:
        messages: list[Message] = [{"type": "http.request", "body": gzipped(plain), "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Message:
            return messages.pop() if messages else await asyncio.get_running_loop().create_future()

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"content-encoding", b"gzip")]
        await endpoint({"type": "http", "method": "POST", "path": "/invocations", "headers": headers}, receive, send)
        status: int = sent[0]["status"]
        return status

    async def main() -> None:
        client = Client()
        with ThreadPoolExecutor(1) as executor:
            path = InferencePath(client, Settings(), executor, RequestLog("off", "json", sys.stderr.buffer))
            endpoint = InvocationsEndpoint(path, budget, 60.0)
            first = asyncio.create_task(invoke(endpoint))
            while not client.replies:
                await asyncio.sleep(0.001)
            assert budget.held_bytes == len(plain)
            assert await invoke(endpoint) == 503
            assert budget.held_bytes == len(plain)
            client.replies[0](Overloaded("full"))
            assert await first == 503
            assert budget.held_bytes == 0

    asyncio.run(asyncio.wait_for(main(), 20))


ROWS = [[1.5, 2.0], [3.25, 4.0]]
JSON = json.dumps(ROWS).encode()
ZEROS = bytes(10 * MIB)


@pytest.fixture(scope="module", params=["1", "2"], ids=["one worker", "two workers"])
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    model = identity(tmp_path_factory.mktemp("models") / "model.onnx", shape=("N", 2))
    with running("--model", str(model), "--max-payload-mib", "1", "--workers", request.param) as server:
        yield server
        assert "Traceback" not in server.log
        assert [line for line in server.events("request") if line["status"] >= 500] == []


def error_of(answer: Answer) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    assert not {"content-encoding", "vary"} & answer.headers.keys()
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.parametrize("rows", [2, 20_000], ids=["on the loop", "on a thread"])
@pytest.mark.parametrize("header", [*CODE, "identity", "gzip, zstd", "deflate, gzip"])
def test_requests_in_every_coding(server: ServerProcess, header: str, rows: int) -> None:
    sent = ROWS * (rows // 2)
    body = json.dumps(sent).encode()
    for name in header.split(", "):
        body = CODE.get(name, bytes)(body)
    answer = server.exchange(post(body, Content_Encoding=header))
    assert (answer.status, answer.json()) == (200, {"predictions": sent})
    assert "content-encoding" not in answer.headers


def test_repeated_headers_are_one_list(server: ServerProcess) -> None:
    body = gzipped(checked_zstd(JSON))
    raw = post(body, Content_Encoding="zstd").replace(b"Host:", b"Content-Type: application/json\r\nHost:", 1)
    raw = raw.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n", 1)
    assert server.exchange(raw).json() == {"predictions": ROWS}


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_chunked_and_coded(server: ServerProcess, size: int) -> None:
    """In pieces that cut the coded data anywhere, with a body that needs a thread."""
    body = gzipped(json.dumps(ROWS * 10_000).encode())
    head = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    answer = server.exchange(head + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n")
    assert answer.json() == {"predictions": ROWS * 10_000}


@pytest.mark.parametrize("header", ["gzip", "deflate", "zstd", "gzip, gzip"])
def test_a_bomb_is_413_and_its_neighbours_are_served(server: ServerProcess, header: str) -> None:
    """10 MiB of zeros in 10 KiB or less, between two good requests in one write, on one connection."""
    bomb = ZEROS
    for name in header.split(", "):
        bomb = CODE[name](bomb)
    assert len(bomb) < 11_000
    good = post(gzipped(JSON), Content_Encoding="gzip")
    with server.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(good + post(bomb, Content_Encoding=header) + good + post(JSON))
        answers = [read_answer(stream) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 413, 200, 200]
    error = error_of(answers[1])
    assert error["code"] == "payload_too_large"
    assert f"limit of {MIB} decoded bytes" in error["message"]
    assert error["limit_bytes"] == MIB
    assert answers[3].json() == {"predictions": ROWS}


def resident_mib(server: ServerProcess) -> float:
    sizes = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in (server.process.pid, *server.worker_pids())]
    return sum(map(int, sizes)) * 4096 / MIB


def test_fifty_bombs_leave_the_memory_as_it_was(server: ServerProcess) -> None:
    bombs = [post(CODE[name](ZEROS), Content_Encoding=name) for name in ("gzip", "deflate", "zstd")]

    def send(times: int) -> None:
        with server.connect() as connection, connection.makefile("rb") as stream:
            for i in range(times):
                connection.sendall(bombs[i % 3])
                assert read_answer(stream).status == 413

    for _ in range(4):  # until every worker has had some: its threads and its buffers are there
        send(6)
    before = resident_mib(server)
    send(50)
    assert resident_mib(server) < before + 3


@pytest.mark.parametrize("body", [b"", b"[[1, 2]]", gzipped(JSON)[:-1], gzipped(JSON) + b"x"])
def test_damaged_bodies_are_400(server: ServerProcess, body: bytes) -> None:
    error = error_of(server.exchange(post(body, Content_Encoding="gzip")))
    assert error["code"] == "invalid_payload"
    assert error["expected"] == "Content-Encoding gzip"
    assert error["field"].startswith("byte ")


def test_a_body_that_is_undone_but_does_not_fit_is_400(server: ServerProcess) -> None:
    for body in (b"[[1]]", b"[[1, 2]" + b" " * 200_000):
        answer = server.exchange(post(gzipped(body), Content_Encoding="gzip"))
        assert (answer.status, error_of(answer)["code"]) == (400, "invalid_payload")


@pytest.mark.parametrize(
    "header",
    ["br", "gzip, br", "gzip, gzip, gzip", "gzip;q=1", '"gzip"', "\xff\xfe", "a" * 9000, "gzip," * 500, "chunked"],
)
def test_an_unknown_coding_is_415_and_told_what_is_taken(server: ServerProcess, header: str) -> None:
    """RFC 9110, section 15.5.16."""
    answer = server.exchange(post(JSON, Content_Encoding="HERE").replace(b"HERE", header.encode("latin-1")))
    assert answer.status == 415
    assert answer.headers["accept-encoding"] == "gzip, deflate, zstd"
    assert error_of(answer)["code"] == "unsupported_content_encoding"
    assert "accept-encoding" not in server.exchange(post(JSON, Content_Type="text/html")).headers


@pytest.mark.parametrize("name", ["Content-Encoding", "Accept-Encoding"])
@pytest.mark.parametrize("text", [b"", b",", b"\t", b";q=", b"gzip;q=9" * 900, b"\x80\xff", b"*;q=*", b"identity" * 99])
def test_malformed_headers_are_no_fault_of_the_server(server: ServerProcess, name: str, text: bytes) -> None:
    lines = b"%b: %b\r\n" % (name.encode(), text)
    for repeated in (lines, lines * 2, lines + b"%b: gzip\r\n" % name.encode(), lines * 6):
        raw = post(gzipped(JSON)).replace(b"\r\n\r\n", b"\r\n%b\r\n" % repeated, 1)
        assert server.exchange(raw).status < 500
    assert server.exchange(post(JSON)).status == 200


LARGE = json.dumps([[i / 7, i / 3] for i in range(10_000)]).encode()


@pytest.mark.parametrize(("wish", "coding"), [("gzip, identity;q=0", "gzip"), ("*, identity;q=0.5", "zstd")])
def test_answers_in_a_coding(server: ServerProcess, wish: str, coding: str) -> None:
    undone: Mapping[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "zstd": zstd.decompress}
    plain = server.exchange(post(LARGE))
    assert len(plain.body) >= LARGE_ANSWER_BYTES
    assert plain.headers["vary"] == "accept-encoding"
    assert "content-encoding" not in plain.headers
    answer = server.exchange(post(LARGE, Accept_Encoding=wish))
    assert (answer.status, answer.headers["content-encoding"]) == (200, coding)
    assert answer.headers["vary"] == "accept-encoding"
    assert answer.headers["content-type"] == "application/json"
    assert undone[coding](answer.body) == plain.body
    first, second = wish.split(", ")
    repeated = post(LARGE, Accept_Encoding=first).replace(
        b"Host:", b"accept-encoding: %b\r\nHost:" % second.encode(), 1
    )
    assert server.exchange(repeated).headers["content-encoding"] == coding


@pytest.mark.parametrize("wish", ["gzip", "gzip, deflate, br, zstd", "*", "gzip;q=0.9", "identity;q=0"])
def test_answers_for_who_takes_them_plain(server: ServerProcess, wish: str) -> None:
    answer = server.exchange(post(LARGE, Accept_Encoding=wish))
    assert (answer.status, answer.headers.get("content-encoding")) == (200, None)
    assert len(answer.json()["predictions"]) == 10_000


def test_small_answers_errors_and_pings_are_never_coded(server: ServerProcess) -> None:
    wish = "gzip, identity;q=0"
    answers = [
        server.exchange(post(JSON, Accept_Encoding=wish)),
        server.exchange(post(json.dumps(ROWS * 3000).encode(), Accept_Encoding=wish)),
        server.exchange(post(b"[", Accept_Encoding=wish)),
        server.exchange(post(ZEROS, Accept_Encoding=wish)),
        server.exchange(f"GET /ping HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {wish}\r\n\r\n".encode()),
    ]
    assert [answer.status for answer in answers] == [200, 200, 400, 413, 200]
    for answer in answers:
        assert not {"content-encoding", "vary"} & answer.headers.keys()


def test_a_client_that_leaves_a_coded_body_behind_does_no_harm(server: ServerProcess) -> None:
    body = gzipped(json.dumps(ROWS * 5_000).encode())  # the queue has room for all of them
    before = len(server.events("request"))
    for _ in range(5):
        with server.connect() as connection:
            connection.sendall(post(body, Content_Encoding="gzip"))
    assert server.exchange(post(JSON)).status == 200
    wait_for(lambda: len(server.events("request")) > before, "the last one is in the log")
