"""What fuzzing begins with: requests as clients write them, and the committed inputs that once showed something.

An input under ``benchmarks/fuzz/seeds`` stays there: a test reads all of them.
"""

from __future__ import annotations

import gzip
import io
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import orjson
from PIL import Image

from benchmarks.fuzz.decoders import decoder_entries, parameters_for
from benchmarks.fuzz.headers import CODINGS
from benchmarks.fuzz.signatures import SIGNATURES
from benchmarks.fuzz.targets import CONNECTION, CONTENT_CODING, NEGOTIATION
from byoc_server.codecs.base import Answer, CodecEntry, EncodeOptions, request_codecs
from byoc_server.codecs.examples import example_request
from byoc_server.codecs.media_type import parse_media_type
from byoc_server.errors import ByocError
from byoc_server.types import STRING, Signature, Tensors

COMMITTED = Path(__file__).resolve().parent / "seeds"
_ROWS = 3
_OPEN_LENGTH = 2
_FORM = "multipart/form-data"
_ORIENTATION = 0x0112
"""Tag of Exif."""

_BODIES: Mapping[str, Sequence[bytes]] = {
    "application/json": (
        b'{"instances":[[1,2],[3,4]]}',
        b'{"instances":[{"x":[1,-2.5e3]},{"x":[true,null]}],"signature_name":"s"}',
        b'{"instances":[{"a":[1,2],"b":"t"},{"a":[3,4],"b":"u"}]}',
        b'{"instances":[{"data":{"features":{"values":[1,2,3,4]}}}]}',
        b'{"data":{"features":{"values":[1,2,3,4]}}}',
        b'{"instances":[{"features":[1,2,3,4]},{"features":[1.5,NaN,Infinity,-Infinity]}]}',
        b'{"instances":[{"data":{"features":{"keys":[0,3],"shape":[4],"values":[1,2]}}}]}',
        b'{"instances":[{"x":{"keys":[0,3],"shape":[4],"values":[1,2]}},{"p":1,"q":2,"r":3}]}',
        b'{"inputs":{"a":[[1,2],[3,4]],"b":["t","u"]}}',
        b'{"a":[[1,2]],"b":["t"]}',
        b"[[1,2,3,4],[5,6,7,8]]",
        b"[1,2,3]",
        b'"text"',
        b'{"instances":[{"b64":"aGVsbG8="},"\\u00e9\\ud83d\\ude00"]}',
        b'{"id":"7","inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2],[3,4]]}],'
        b'"outputs":[{"name":"x"}]}',
        b'{"inputs":[{"name":"a","shape":[1,2],"datatype":"FP32","data":[1,2]},'
        b'{"name":"b","shape":[1],"datatype":"BYTES","data":["t"]}]}',
    ),
    "application/jsonlines": (
        b'{"x":[1,2,3,4]}\n{"features":[1,2,3,4]}\r\n\n[5,6,7,8]',
        b'{"a":[1,2],"b":"t"}\n{"b":"u","a":[3,NaN]}\n',
        b'{"data":{"features":{"keys":[0],"shape":[4],"values":[1]}}}\n',
        b'1\n2\n"t"\n',
        b'{"p":1,"q":2,"r":3}\n',
    ),
    "text/csv": (
        b"1,2,3,4\n5,6,7,8\n",
        b'"a ""quoted"" one",b\r\n"two\nlines",\r\n',
        b"p,q,r\n1,2,t\n-1.5e-3,,u",
        b"a,b\n1,true\nnan,false\n",
        b"0,1,2\n1,inf,0x10\n",
        b"1\n\n2\r3",
        b"\xef\xbb\xbf1,2\n \t3 , 4\n",
    ),
    "text/libsvm": (
        b"0 1:1 2:2.5\n1 0:-3e2 3:nan # comment\n",
        b"1,2 qid:7 0:1\n\n0 3:1",
        b"0\n",
    ),
    "multipart/form-data": (
        b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n[1,2,3,4]\r\n'
        b'--b\r\nContent-Disposition: form-data; name="x"\r\nContent-Type: text/csv; header=absent\r\n\r\n'
        b"1,2,3,4\r\n--b--",
        b"preamble\r\n--b  \r\ncontent-disposition: form-data; name=_charset_\r\n\r\nUTF-8\r\n"
        b"--b\r\nContent-Disposition: form-data; name*=utf-8''%78; name=x\r\nContent-Type: application/json\r\n\r\n"
        b'{"instances":[[1,2,3]]}\r\n--b--\r\nepilogue',
        b'--b\r\nContent-Disposition: form-data; name="b"; filename="b"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\nt\r\n"
        b'--b\r\nContent-Disposition: form-data; name="a"\r\nContent-Transfer-Encoding: 8bit\r\n\r\n[1,2]\r\n--b--\r\n',
    ),
}
"""Media type -> bodies by hand, each tried with every signature."""
_HEADERS = (
    b'text/csv; header=present; charset="utf-8"\napplication/json;q=0.5, */*;q=0.1\ngzip, identity\ngzip, identity;q=0',
    b"application/x-npy\ntext/*;q=.3, application/*;q=1., , ;\nzstd\nzstd;q=0.9, *;q=0",
    b'Application/VND.Apache.Arrow.Stream ; a="b\\"c"\n*/*\nx-gzip\n*',
    b'multipart/form-data; boundary="a b"\napplication/json; indent=2; q=1.000\nbr\nx-gzip',
)

_INVOCATION = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 7\r\n"
_PING = b"GET /ping HTTP/1.1\r\nHost: a\r\n"
_CHUNKS = b"4;a=b\r\n[[1,\r\n3\r\n2]]\r\n0\r\nX-A: b\r\n\r\n"
_SENT = (
    _INVOCATION + b"\r\n[[1,2]]",
    _INVOCATION + b"X-Amzn-SageMaker-Custom-Attributes: a\r\nAccept: text/csv\r\n\r\n[[1,2]]",
    _INVOCATION + b"\r\n[[1,2]]" + _PING + b"\r\n" + _INVOCATION + b"\r\n[[3,4]]",
    _INVOCATION + b"\r\n[[1,?]]" + b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n" + _INVOCATION + b"\r\n[[3,4]]",
    _INVOCATION + b"Expect: 100-continue\r\n\r\n[[1,2]]",
    _INVOCATION + b"Connection: close\r\n\r\n[[1,2]]",
    _INVOCATION + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n[[1,2]]" + _PING + b"\r\n",
    _INVOCATION + b"Content-Length: 8\r\n\r\n[[1,2]]",
    _INVOCATION.replace(b"Content-Length: 7", b"Transfer-Encoding: chunked") + b"\r\n" + _CHUNKS,
    _INVOCATION + b"Transfer-Encoding: chunked\r\n\r\n" + _CHUNKS,
    _INVOCATION.replace(b"/invocations", b"/%69nvocations?a=b") + b"\r\n[[1,2]]",
    _INVOCATION.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n[[1,2]]",
    _PING + b"\r\n" + _PING.replace(b"GET", b"HEAD") + b"\r\n" + _PING.replace(b"GET", b"PUT") + b"\r\n",
    b"GET /invocations HTTP/1.1\r\nHost: a\r\n\r\n",
    _PING + b" folded\r\n\r\n",
    _PING.replace(b"\r\n", b"\n") + b"\n",
)
"""On a connection."""


def folder_name(target: str) -> str:
    """How the folder of a target is called."""
    return target.replace("/", "-")


def committed_seeds(target: str) -> list[Path]:
    """The committed inputs of a target."""
    return sorted((COMMITTED / folder_name(target)).glob("*"))


def made_seeds(target: str) -> list[bytes]:
    """Inputs of a target made by code: none twice."""
    if target == NEGOTIATION:
        made: Iterator[bytes] = iter(_HEADERS)
    elif target == CONTENT_CODING:
        made = _codings()
    elif target == CONNECTION:
        made = (bytes([how]) + sent for sent in _SENT for how in (0, 2, 11, 36))
    else:
        made = _requests(decoder_entries()[target])
    return list(dict.fromkeys(made))


def _codings() -> Iterator[bytes]:
    plain = b'{"instances":[[1,2,3,4]]}' * 40
    bodies = [plain, gzip.compress(plain, mtime=0), zlib.compress(plain), zlib.compress(plain, wbits=-15)]
    bodies += [bodies[1] * 2, gzip.compress(bodies[2], mtime=0), zlib.compress(bodies[1])]
    bodies.append(bytes.fromhex("28b52ffd2019c900007b22696e7374616e636573223a5b5b312c322c332c345d5d7d"))  # zstd, stored
    for number in range(len(CODINGS)):
        yield from (bytes([number]) + body for body in bodies)


def _requests(entry: CodecEntry) -> Iterator[bytes]:
    names = [other for other in request_codecs() if other.module == entry.module]
    bodies = [*_BODIES.get(entry.media_type, ()), *(_image_files() if entry.media_type.startswith("image/") else ())]
    for index, signature in enumerate(SIGNATURES):
        for other, rows in itertools.product(names, (1, _ROWS)):
            for content_type, body in _written(other, signature, rows):
                yield _input(entry, index, content_type, body)
        for body in bodies:
            yield _input(entry, index, entry.media_type, body)
            yield bytes([index, 1, 0]) + body


def _written(entry: CodecEntry, signature: Signature, rows: int) -> Iterator[tuple[str, bytes]]:
    tensors = _tensors(signature, rows)
    if entry.media_type == _FORM:
        yield f"{_FORM}; boundary=b", _form(tensors, rows)
        return
    try:
        if rows == 1:
            yield example_request(entry, tensors, signature)
        elif entry.answers:
            answer = entry.load().encode(tensors, signature, EncodeOptions())
            yield (answer.media_type, answer.body) if isinstance(answer, Answer) else (entry.media_type, answer)
    except ByocError:  # this format carries nothing for this model
        return


def _form(tensors: Tensors, rows: int) -> bytes:
    """A form of one part an input: typed text, or a file where there are several records."""
    parts = []
    for name, array in tensors.items():
        if rows == 1:
            head, content = "", orjson.dumps(array.tolist())
        else:
            stream = io.BytesIO()
            np.save(stream, array.astype(np.str_) if array.dtype == STRING else array)
            head, content = '; filename="f.npy"\r\nContent-Type: application/x-npy', stream.getvalue()
        parts.append(f'--b\r\nContent-Disposition: form-data; name="{name}"{head}\r\n\r\n'.encode() + content)
    return b"\r\n".join([*parts, b"--b--\r\n"])


def _image_files() -> list[bytes]:
    """Small images of many kinds."""
    grey = Image.frombytes("L", (9, 7), bytes(range(0, 252, 4)))
    upside_down = Image.Exif()
    upside_down[_ORIENTATION] = 3
    kinds: Sequence[tuple[str, str, Mapping[str, object]]] = (
        ("RGB", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}),
        ("L", "JPEG", {"exif": upside_down}),
        ("1", "PNG", {}),
        ("P", "PNG", {"transparency": 0}),
        ("LA", "PNG", {"exif": upside_down}),
        ("RGBA", "PNG", {}),
        ("I;16", "PNG", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "WEBP", {"save_all": True, "append_images": [grey.convert("RGB")], "duration": 9}),
    )
    files = []
    for mode, kind, options in kinds:
        stream = io.BytesIO()
        grey.convert(mode).save(stream, kind, **options)
        files.append(stream.getvalue())
    return files


def _input(entry: CodecEntry, signature: int, content_type: str, body: bytes) -> bytes:
    """A fuzz input: the prefix that says how the body is read, and the body."""
    media_type = parse_media_type(content_type)
    parameters = dict(media_type.parameters) if media_type is not None else {}
    size = parameters.get("json-header-size", "")
    numbers = [int(size)] if size else range(256)
    number = next((n for n in numbers if parameters_for(entry.media_type, n) == parameters), 0)
    return bytes([signature, *number.to_bytes(2, "little")]) + body


def _tensors(signature: Signature, rows: int) -> Tensors:
    """Small numbers, or short texts, for every input."""
    rng = np.random.default_rng(rows)
    tensors: Tensors = {}
    for spec in signature.inputs:
        record = tuple(_OPEN_LENGTH if length is None else length for length in signature.record_shapes[spec.name])
        shape = (rows, *record) if signature.batched else record
        numbers = np.asarray(rng.integers(0, 2 if spec.dtype.kind == "b" else 100, shape))
        tensors[spec.name] = numbers.astype(str).astype(object) if spec.dtype == STRING else numbers.astype(spec.dtype)
    return tensors
