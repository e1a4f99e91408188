"""What a codec is, and the table of all of them.

A codec is one module with ``decode`` and ``encode`` and one row in ``CODECS``, or in another package an entry point
(``plug_ins``). It is pure: bytes and a signature in, tensors out, and the other way round; no I/O, no clock, no state.

``decode`` returns tensors that fit the signature completely (names, dtypes, ranks, lengths, one N for all), so
nothing behind it has to look again, and a bad body can never reach a batch it shares with others.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple, Protocol, cast

from byoc_server.codecs.plug_ins import plug_ins
from byoc_server.errors import StartupError
from byoc_server.types import Signature, Tensors


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """What a decoder may know besides the body and the signature.

    Attributes:
        parameters: media type parameters, names in lower case, e.g. ``{"header": "present"}``.
        max_tensor_bytes: a decoder refuses to build tensors of more bytes in all. It matters where few bytes can
            declare many, as a sparse record does.
    """

    parameters: Mapping[str, str]
    max_tensor_bytes: int = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a request says about its answer, in formats whose requests do.

    Attributes:
        id: given back in the answer; ``None`` if the request has none.
        outputs: names of the outputs it wants, in order; empty = all.
        binary: output -> whether it wants that data as raw bytes; outputs it says nothing about are missing.
    """

    id: str | None = None
    outputs: tuple[str, ...] = ()
    binary: Mapping[str, bool] = field(default_factory=dict)


class Enveloped(NamedTuple):
    """Tensors of a request that also says something about its answer."""

    tensors: Tensors
    envelope: Envelope


class Answer(NamedTuple):
    """An encoded answer whose media type depends on what is in it."""

    body: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What an encoder may know besides the tensors.

    Attributes:
        final_newline: whether line formats end with a newline.
        envelope: what the request said about its answer; ``None`` in formats that say nothing.
        model_name: of the model that answers, for formats that name it.
    """

    final_newline: bool = True
    envelope: Envelope | None = None
    model_name: str = "model"


class Codec(Protocol):
    """One wire format. Implemented by a module, not a class.

    A format that only requests come in has no ``encode``, and says so in its row.
    """

    def decode(self, body: bytes, signature: Signature, options: DecodeOptions) -> Tensors | Enveloped:
        """Read a request body into the inputs of the model.

        Raises:
            InvalidPayload: the body does not parse or does not fit; the message names the place.
            UnsupportedMediaType: a media type parameter asks for something this codec does not do.
        """
        ...

    def encode(self, tensors: Tensors, signature: Signature, options: EncodeOptions) -> bytes | Answer:
        """Write the outputs of the model into a response body.

        Args:
            tensors: every output of the signature by name; arrays share axis 0 when the model is batched.
            signature: of the model that made them.
            options: see ``EncodeOptions``.

        Raises:
            NotAcceptable: this format cannot carry these outputs.
        """
        ...


Decoder = Callable[[bytes], Tensors | Enveloped]
"""Reads bodies for one signature and with the same options."""

MakeDecoder = Callable[[Signature, DecodeOptions], Decoder]
"""What a codec may have beside ``decode``, as ``decoder``: looks once at all that does not change from body to body."""

EncodeEach = Callable[[Tensors, Signature, EncodeOptions, Sequence[int]], list[bytes] | None]
"""What a codec may have beside ``encode``, as ``encode_each``: writes the answers to several requests in one pass.

Takes the outputs of all of them, which share axis 0, in one array a name, and the number of rows of each request.
Gives one body for each, equal to what ``encode`` makes of just its rows; or ``None`` where one pass is not possible."""


class BrokenLibraryError(Exception):
    """A library that a codec is built on is installed and cannot be imported."""


_broken: set[str] = set()
"""Such libraries, once it has been found out."""


@dataclass(frozen=True, slots=True)
class CodecEntry:
    """One row of the table.

    Attributes:
        media_type: the canonical name, used in answers.
        module: import path of the codec.
        aliases: other names for the same format.
        inline_bytes: bodies up to this size are decoded and encoded on the event loop: about a millisecond's work.
            Larger ones go to a thread so that pings are not kept waiting.
        answers: whether answers can be written in it.
        sole_output: whether it can carry the one output of a model only.
        library: module of an optional package that it is built on; empty if it needs none. Such a codec is loaded when
            it is first asked for, the others at start.
        extra: the extra of this package that installs the library.
    """

    media_type: str
    module: str
    aliases: tuple[str, ...] = ()
    inline_bytes: int = 64 * 1024
    answers: bool = True
    sole_output: bool = False
    library: str = ""
    extra: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The canonical name and the aliases."""
        return (self.media_type, *self.aliases)

    @property
    def requirement(self) -> str:
        """What installs the library that it is built on, as pip takes it."""
        return f"byoc-server[{self.extra}]"

    @property
    def installed(self) -> bool:
        """Whether what it is built on is there."""
        return not self.library or (self.library not in _broken and _can_import(self.library))

    def load(self) -> Codec:
        """Import the codec.

        Raises:
            BrokenLibraryError: its library is there and cannot be imported; the codec is not ``installed`` any more.
        """
        try:
            return cast(Codec, importlib.import_module(self.module))
        except ImportError as error:
            if not self.library:
                raise
            _broken.add(self.library)
            request_codecs.cache_clear()
            answer_codecs.cache_clear()
            raise BrokenLibraryError(f"{self.media_type} is not served: {self.library} cannot be imported") from error


CODECS: tuple[CodecEntry, ...] = (
    CodecEntry("application/json", "byoc_server.codecs.json"),
    CodecEntry(
        "application/jsonlines", "byoc_server.codecs.jsonlines", ("application/x-jsonlines", "application/x-ndjson")
    ),
    CodecEntry("text/csv", "byoc_server.codecs.csv"),
    CodecEntry("application/x-npy", "byoc_server.codecs.npy", inline_bytes=1024 * 1024),
    # a few kilobytes can inflate to as many megabytes
    CodecEntry("application/x-npz", "byoc_server.codecs.npz", inline_bytes=4 * 1024),
    CodecEntry(
        "application/octet-stream", "byoc_server.codecs.octet_stream", inline_bytes=1024 * 1024, sole_output=True
    ),
    CodecEntry("text/libsvm", "byoc_server.codecs.libsvm", ("text/x-libsvm",), answers=False),
    CodecEntry(
        "application/msgpack",
        "byoc_server.codecs.msgpack",
        ("application/x-msgpack",),
        inline_bytes=16 * 1024,
        library="msgpack",
        extra="msgpack",
    ),
    CodecEntry(
        "application/vnd.apache.arrow.stream",
        "byoc_server.codecs.arrow_stream",
        inline_bytes=4 * 1024,  # compressed, it can inflate to as many megabytes
        library="pyarrow",
        extra="arrow",
    ),
    CodecEntry(
        "application/vnd.apache.arrow.file",
        "byoc_server.codecs.arrow_file",
        inline_bytes=4 * 1024,  # compressed, it can inflate to as many megabytes
        library="pyarrow",
        extra="arrow",
    ),
    CodecEntry(
        "application/x-parquet",
        "byoc_server.codecs.parquet",
        ("application/vnd.apache.parquet",),
        inline_bytes=0,  # opening a file takes half a millisecond, and few bytes may stand for many values
        library="pyarrow",
        extra="arrow",
    ),
    CodecEntry(
        "application/x-recordio-protobuf",
        "byoc_server.codecs.recordio",
        inline_bytes=16 * 1024,  # of records that differ in more than their numbers; others are 100 times as quick
    ),
    CodecEntry(
        "application/x-tfexample",
        "byoc_server.codecs.tfexample",
        ("application/x-tfrecord",),
        inline_bytes=16 * 1024,
        answers=False,
    ),
    # few bytes may stand for many pixels
    CodecEntry("image/jpeg", "byoc_server.codecs.image", inline_bytes=0, answers=False, library="PIL", extra="image"),
    CodecEntry("image/png", "byoc_server.codecs.image", inline_bytes=0, answers=False, library="PIL", extra="image"),
    CodecEntry("image/webp", "byoc_server.codecs.image", inline_bytes=0, answers=False, library="PIL", extra="image"),
    CodecEntry(
        "application/x-image",
        "byoc_server.codecs.image",
        inline_bytes=0,
        answers=False,
        library="PIL",
        extra="image",
    ),
    CodecEntry(
        "application/vnd.sagemaker-triton.binary+json",
        "byoc_server.codecs.open_inference_binary",
        inline_bytes=1024 * 1024,  # much JSON in it leaves the event loop by itself
    ),
    CodecEntry(
        "multipart/form-data",
        "byoc_server.codecs.multipart",
        inline_bytes=1024,  # every part may be of a format that takes half a millisecond to open
        answers=False,
    ),
)
"""The formats of this package. The order breaks the last ties of negotiation."""


@cache
def all_codecs() -> tuple[CodecEntry, ...]:
    """The formats of this package, then those that other installed packages add (``plug_ins``).

    Raises:
        StartupError: an entry point cannot be loaded, is no ``CodecEntry`` of a codec, or adds a name that is taken.
    """
    taken = {name for entry in CODECS for name in entry.names}
    added: list[CodecEntry] = []
    for source, load in plug_ins():
        entry = _plugged_in(source, load)
        if not taken.isdisjoint(entry.names):
            names = ", ".join(sorted(taken.intersection(entry.names)))
            raise StartupError(f"codec plug-in {source}: there is a codec for {names} already")
        taken.update(entry.names)
        added.append(entry)
    return (*CODECS, *added)


def _plugged_in(source: str, load: Callable[[], object]) -> CodecEntry:
    """Load a codec that another package adds. Raises ``StartupError``."""
    try:
        entry = load()
        codec = entry.load() if isinstance(entry, CodecEntry) and entry.installed else None
    except Exception as error:  # of code that is not ours
        raise StartupError(f"codec plug-in {source} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(entry, CodecEntry):
        raise StartupError(f"codec plug-in {source} is a {type(entry).__name__}, not a CodecEntry")
    for name in ("decode", "encode") if entry.answers else ("decode",):
        if codec is not None and not callable(getattr(codec, name, None)):
            raise StartupError(f"codec plug-in {source}: {entry.module} has no function {name}")
    return entry


@cache
def codecs_by_media_type() -> Mapping[str, CodecEntry]:
    """Every canonical name and alias, in lower case -> its row."""
    return {name: entry for entry in all_codecs() for name in entry.names}


@cache
def request_codecs() -> tuple[CodecEntry, ...]:
    """The formats that requests may come in here, in the order of the table."""
    return tuple(entry for entry in all_codecs() if entry.installed)


@cache
def answer_codecs() -> tuple[CodecEntry, ...]:
    """The formats that answers can be written in here, in the order of the table."""
    return tuple(entry for entry in request_codecs() if entry.answers)


def media_types(entries: Sequence[CodecEntry]) -> list[str]:
    """The canonical names, for error bodies and documentation."""
    return [entry.media_type for entry in entries]


@cache
def _can_import(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
