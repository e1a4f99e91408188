"""``Content-Type`` and ``Accept`` to codecs."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_server.codecs.base import CODECS, CodecEntry, answer_codecs
from byoc_server.errors import NotAcceptable, UnsupportedMediaType
from byoc_server.http.negotiation import choose_decoder, choose_encoder

LAWS = settings(deadline=None, max_examples=400, derandomize=True)
JSON, LINES, CSV, NPY = CODECS[:4]
NAMES = {"json": JSON, "lines": LINES, "csv": CSV, "npy": NPY}


def encoder_for(accept: str | None, default: str, request_format: CodecEntry) -> CodecEntry:
    return choose_encoder(accept, default, request_format)[0]


@pytest.mark.parametrize(
    ("header", "name", "parameters"),
    [
        (None, "csv", {}),
        ("", "csv", {}),
        ("  ", "csv", {}),
        ("application/json", "json", {}),
        (" Application/JSON ", "json", {}),
        ("APPLICATION/X-NPY", "npy", {}),
        ("application/jsonlines", "lines", {}),
        ("application/x-ndjson", "lines", {}),
        ("application/x-jsonlines;", "lines", {}),
        ("text/csv;header=present", "csv", {"header": "present"}),
        ('Text/CSV ; Label_Size = "0" ;CHARSET=utf-8', "csv", {"label_size": "0", "charset": "utf-8"}),
        ('text/csv; charset="ut\\f-8"; header="a;b,c"', "csv", {"charset": "utf-8", "header": "a;b,c"}),
        ("text/csv;;; header=absent;", "csv", {"header": "absent"}),
        ("text/csv; header=absent; HEADER=present", "csv", {"header": "absent"}),
        ('text/csv; charset=""', "csv", {"charset": ""}),
    ],
)
def test_content_types(header: str | None, name: str, parameters: dict[str, str]) -> None:
    """Checklist 29: any spelling, parameters in any case, order and quoting; none at all means the default."""
    assert choose_decoder(header, "text/csv") == (NAMES[name], parameters)


@pytest.mark.parametrize(
    "header",
    ["application/xml", "json", "/", "application/", "/json", "*/*", "application/*", "application/json, text/csv"]
    + ["application /json", "application/json; charset", "application/json; =x", 'text/csv; charset="utf-8', "\x00"]
    + ["application/json x", "text/csv; a=b c=d", "application/json" + ";" * 5000, "x" * 100_000, "\u20ac/json"],
)
def test_content_types_that_nothing_reads(header: str) -> None:
    """Checklist 36."""
    with pytest.raises(UnsupportedMediaType) as caught:
        choose_decoder(header, "application/json")
    assert caught.value.status == 415
    assert "use application/json, application/jsonlines, text/csv, application/x-npy" in caught.value.message
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("header", [None, "", " ", ",", " , ,\t", "*/*", "*/*;q=0.1", "*/*, */*", "*/*;verbose=true"])
def test_a_client_that_does_not_care_gets_the_default(header: str | None) -> None:
    """Checklist 34."""
    for entry in answer_codecs():
        assert encoder_for(header, entry.media_type, JSON) is entry
    assert encoder_for(header, "Text/CSV; charset=utf-8", JSON) is CSV
    assert encoder_for(header, "application/x-ndjson", JSON) is LINES


@pytest.mark.parametrize(
    ("header", "request_format", "answer"),
    [
        ("text/csv", "json", "csv"),
        ("Text/CSV; charset=utf-8", "json", "csv"),
        ("application/x-ndjson", "json", "lines"),
        ("application/x-jsonlines", "json", "lines"),
        ("application/*", "csv", "json"),
        ("application/*", "npy", "npy"),
        ("text/*", "json", "csv"),
        # weights
        ("application/json;q=0.5, text/csv", "json", "csv"),
        ("application/json;q=0.5, text/csv;q=0.4", "csv", "json"),
        ("application/json;Q=0.5, text/csv;q=0.501", "json", "csv"),
        ("text/csv; q = 0.4 , application/json ;q=0.3", "json", "csv"),
        ("application/xml, text/csv;q=0.1", "json", "csv"),
        ("application/json;q=1.000, text/csv;q=0.999", "csv", "json"),
        ('application/json;q="0.1", text/csv;q=0.2', "json", "csv"),
        ("text/csv;q=.2, application/json;q=.1", "json", "csv"),
        ("text/csv;q=2, application/json;q=0.9", "json", "csv"),
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", "csv", "json"),
        # the most specific range decides
        ("*/*, application/json;q=0.1", "json", "lines"),
        ("application/*;q=0.1, */*", "json", "csv"),
        ("application/json;q=0, */*", "csv", "csv"),
        ("application/json;q=0, */*", "json", "lines"),
        ("application/*;q=0, */*", "json", "csv"),
        ("application/json;q=0, application/*;q=0.5, */*;q=0.1", "json", "lines"),
        ("application/x-ndjson;q=0, application/jsonlines", "json", "lines"),
        # ties: the request's own format, then the client's order, then the table's
        ("text/csv, application/json", "json", "json"),
        ("text/csv, application/json", "csv", "csv"),
        ("text/csv, application/json", "npy", "csv"),
        ("application/x-npy, text/csv;q=1, application/json;q=0.9", "json", "npy"),
        ("application/json, text/csv, */*", "csv", "csv"),
        ("text/csv, */*", "json", "csv"),
        # repeated and malformed parts
        ("text/csv;q=0.1, text/csv;q=0.9, application/json;q=0.5", "json", "csv"),
        ("json, ,;, text/csv", "json", "csv"),
        ("application/json;q=high, text/csv;q=0.1", "json", "csv"),
        ("*/json, text/csv;q=0.1", "json", "csv"),
        ('application/json;x="a,b";q=0.1, text/csv;q=0.2', "json", "csv"),
        ('text/csv, application/json;x="never closed', "json", "csv"),
        ('text/csv, "', "json", "csv"),
    ],
)
def test_accept(header: str, request_format: str, answer: str) -> None:
    """Checklist 35: lists with weights and wildcards (RFC 9110, section 12.5.1)."""
    assert encoder_for(header, "application/json", NAMES[request_format]) is NAMES[answer]


@pytest.mark.parametrize(
    "header",
    [
        "application/xml",
        "image/*",
        "*/*;q=0",
        "*/*;q=0.0",
        "application/json;q=0",
        "json",
        "*",
        "*/csv",
        '"',
        "text/csv;q=x",
    ]
    + ["text/csv;q=-1", "text/csv;q=nan", "text/csv;q=1e3", "text/csv;q=", "\x00\xff", "x" * 100_000, "text/csv x"],
)
def test_nothing_acceptable(header: str) -> None:
    """Checklist 36."""
    with pytest.raises(NotAcceptable) as caught:
        encoder_for(header, "application/json", JSON)
    assert caught.value.status == 406
    assert "available are application/json" in caught.value.message
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("default", ["garbage", "application/xml", "*/*", ""])
def test_a_default_that_cannot_be_produced(default: str) -> None:
    with pytest.raises(NotAcceptable, match="default format"):
        encoder_for(None, default, JSON)
    assert encoder_for("text/csv", default, JSON) is CSV


def test_long_headers_cost_little() -> None:
    start_s = time.monotonic()
    for header in (
        "a/a," * 20_000,
        "," * 60_000,
        ";" * 60_000,
        '"\\' * 30_000,
        "text/csv" + ";a" * 30_000,
        " " * 60_000,
    ):
        with contextlib.suppress(NotAcceptable):
            encoder_for(header + "!", "application/json", JSON)
        with pytest.raises(UnsupportedMediaType):
            choose_decoder(header + "!", "application/json")
    assert time.monotonic() - start_s < 2


pieces = st.sampled_from(
    [
        "application/json",
        "text/csv",
        "*/*",
        "application/*",
        ",",
        ";",
        "q=0",
        "q=0.5",
        "=",
        '"',
        "\\",
        " ",
        "\t",
        "a",
        "/",
    ]
)
headers = st.text() | st.lists(pieces, max_size=12).map("".join) | st.binary().map(lambda b: b.decode("latin-1"))


@LAWS
@given(headers, headers)
def test_any_headers_give_codecs_or_415_and_406(content_type: str, accept: str) -> None:
    source = JSON
    try:
        source, parameters = choose_decoder(content_type, "text/csv")
        assert all(name == name.lower() for name in parameters)
    except UnsupportedMediaType:
        pass
    with contextlib.suppress(NotAcceptable):
        assert encoder_for(accept, "application/json", source) in CODECS


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ("application/x-ndjson", "application/x-ndjson"),
        ("Application/JSON", "application/json"),
        ("application/*", "application/json"),
        ("text/csv;q=0.5, application/x-jsonlines", "application/x-jsonlines"),
        (None, "application/x-ndjson"),
    ],
)
def test_the_answer_is_called_what_the_client_asked_for(accept: str | None, name: str) -> None:
    """Checklist 78."""
    assert choose_encoder(accept, "application/x-ndjson", JSON)[1] == name
