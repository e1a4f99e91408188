"""``byoc.toml`` without a model: what it says, and what is wrong with it where."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_server.errors import ModelLoadError
from byoc_server.models.adapter import read_config
from byoc_server.models.labels import read_labels
from byoc_server.models.model_config import (
    MAX_BYTES,
    ImageConfig,
    InputConfig,
    ModelConfig,
    OutputConfig,
    parse_config,
)
from byoc_server.models.toml_source import TomlSource, line_of
from byoc_server.types import STRING, Layout, Resize

LAWS = settings(deadline=None, max_examples=150, derandomize=True)


def parse(text: str) -> ModelConfig:
    return parse_config(text, "byoc.toml")


def refusal(text: str) -> str:
    with pytest.raises(ModelLoadError) as caught:
        parse(text)
    return caught.value.message


def test_an_empty_file_says_nothing() -> None:
    assert parse("# nothing\n") == ModelConfig(TomlSource("byoc.toml", "# nothing\n"))


def test_every_key_is_read() -> None:
    config = parse(
        """
        name = "classifier"
        content_type = "text/csv; header=present"
        accept = "application/x-ndjson"

        [inputs.x]
        name = "picture"
        dtype = "uint8"
        columns = ["age", "height"]
        padding_value = -1

        [inputs.x.image]
        height = 224
        width = 192
        channels = "BGR"
        layout = "HWC"
        resize = "crop"
        resize_to = 256
        fill = 114
        scale = 2
        mean = [0.5, 0.25, 0]
        std = 0.5
        shrink_on_load = true

        [inputs."y:0"]
        dtype = "string"
        padding_value = ""

        [batching]
        pad = false

        [outputs]
        return = ["scores", "scores_labels"]

        [outputs.logits]
        name = "scores"
        softmax = true
        top_k = 5
        labels = "labels.txt"

        [outputs.other]
        labels = ["cat", "dog"]
        """
    )
    image = ImageConfig(
        224, 192, "BGR", Layout.HWC, Resize.CROP, 256, 114, 2.0, (0.5, 0.25, 0.0), (0.5,), shrink_on_load=True
    )
    assert (config.name, config.content_type, config.accept) == (
        "classifier",
        "text/csv; header=present",
        "application/x-ndjson",
    )
    assert config.inputs == {
        "x": InputConfig("picture", np.dtype(np.uint8), ("age", "height"), -1, image),
        "y:0": InputConfig(dtype=STRING, padding_value=""),
    }
    assert config.outputs == {
        "logits": OutputConfig("scores", True, 5, "labels.txt"),
        "other": OutputConfig(labels=("cat", "dog")),
    }
    assert config.returned == ("scores", "scores_labels")
    assert not config.pad


def test_an_output_may_be_called_return() -> None:
    config = parse("[outputs.return]\ntop_k = 1\n")
    assert config.outputs == {"return": OutputConfig(top_k=1)}
    assert config.returned == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names = 'x'", r"line 1, names: there is no such key; did you mean 'name'\? There is 'name', 'content_type'"),
        ("zzz = 1", r"line 1, zzz: there is no such key; there is 'name', "),
        ("name = '..'", r"line 1, name: expected a name .* got '\.\.'$"),
        ("[batching]\npad = 0", r"line 2, batching\.pad: expected true or false, got 0$"),
        ("[batching]\n\npads = true", r"line 3, batching\.pads: there is no such key; did you mean 'pad'"),
        ("batching = 4", r"line 1, batching: expected a table, \[batching\], got 4$"),
        (
            "[inputs.x.image]\nscale = 1" + "0" * 400,
            r"line 2, inputs\.x\.image\.scale: expected a number, got a larger integer$",
        ),
        ("name = 0x1" + "0" * 5000, r"line 1, name: expected a name .* got a larger integer$"),
        ("[inputs.x]\npadding_value = 0x1" + "0" * 5000, r"padding_value: expected a value of the input, got a larger"),
        ("[outputs.y]\nlabels = '../labels.txt'", r"line 2, outputs\.y\.labels: expected a file in the folder of"),
        ("[outputs.y]\nlabels = '/etc/labels.txt'", r"line 2, outputs\.y\.labels: expected a file in the folder of"),
        ("name = 3", r"line 1, name: expected a name without spaces and without / .* got 3$"),
        ("name = 'a/b'", r"line 1, name: expected a name without .* got 'a/b'$"),
        ("name = ''", "expected a name without"),
        ("\nname = 'a\\u0007'".replace("'", '"'), r"line 2, name: expected a name"),
        ("content_type = 'text/cvs'", r"content_type: expected one of application/json, .*, got 'text/cvs'$"),
        ("content_type = 'text'", "content_type: expected one of"),
        ("content_type = 7", "content_type: expected one of .*, got 7$"),
        ("accept = 'text/libsvm'", "accept: expected one of application/json, application/jsonlines"),
        ("accept = '*/*'", r"accept: expected one of .*, got '\*/\*'$"),
        ("inputs = 3", r"line 1, inputs: expected a table, \[inputs\], got 3$"),
        ("# one\n[inputs]\nx = 3", r"line 3, inputs\.x: expected a table, \[inputs\.x\], got 3$"),
        ("[inputs.x]\ncolumn = ['a']", r"line 2, inputs\.x\.column: there is no such key; did you mean 'columns'\?"),
        ("[inputs.x]\nname = ''", r"line 2, inputs\.x\.name: expected a name, got ''$"),
        ("[inputs.x]\ndtype = 'float'", r"dtype: expected one of 'float16', .*'string', got 'float'$"),
        ("[inputs.x]\ndtype = [1]", r"dtype: expected one of .* got \[1\]$"),
        ("[inputs.x]\ncolumns = 'a'", "columns: expected an array of different names, got 'a'$"),
        ("[inputs.x]\ncolumns = []", "columns: expected an array of different names"),
        ("[inputs.x]\ncolumns = ['a', 'a']", "columns: expected an array of different names"),
        ("[inputs.x]\ncolumns = ['a', 1]", "columns: expected an array of different names"),
        ("[inputs.x]\npadding_value = []", "padding_value: expected a value of the input"),
        ("[inputs.x]\nimage = true", r"inputs\.x\.image: expected a table, \[inputs\.x\.image\], got true$"),
        ("[inputs.x.image]\nheights = 3", r"line 2, inputs\.x\.image\.heights: .*did you mean 'height'\?"),
        ("[inputs.x.image]\nheight = 0", r"height: expected a whole number from 1 to 65535, got 0$"),
        ("[inputs.x.image]\nheight = true", r"height: expected a whole number .* got true$"),
        ("[inputs.x.image]\nchannels = 'rgb'", r"channels: expected one of 'RGB', 'BGR', 'L', got 'rgb'$"),
        ("[inputs.x.image]\nlayout = 'NCHW'", "layout: expected one of 'CHW', 'HWC', 'HW', got 'NCHW'$"),
        ("[inputs.x.image]\nresize = 'fit'", "resize: expected one of 'stretch', 'crop', 'pad', got 'fit'$"),
        ("[inputs.x.image]\nfill = 256", "fill: expected a whole number from 0 to 255"),
        ("[inputs.x.image]\nscale = '1'", "scale: expected a number, got '1'$"),
        ("[inputs.x.image]\nscale = inf", "scale: expected a number, got inf$"),
        ("[inputs.x.image]\nmean = [1, 'a']", "mean: expected a number, or an array of one for each channel"),
        ("[inputs.x.image]\nmean = []", "mean: expected a number, or an array of one for each channel"),
        ("[inputs.x.image]\nstd = [1, 0.0]", "std: expected numbers other than 0"),
        ("[outputs]\nreturn = 'a'", r"line 2, outputs\.return: expected an array of different names, got 'a'$"),
        ("[outputs.y]\nsoftmax = 1", r"outputs\.y\.softmax: expected true or false, got 1$"),
        ("[outputs.y]\ntop_k = 0", r"top_k: expected a whole number from 1 to"),
        ("[outputs.y]\nlabels = 3", r"labels: expected the name of a file, or an array of strings, got 3$"),
        ("[outputs.y]\nlabels = []", "labels: expected the name of a file"),
        ("[outputs.y]\nlabels = ['a', 3]", "labels: expected the name of a file"),
        ("[outputs.y]\nlabels = ''", "labels: expected the name of a file"),
        ("inputs = {x = {name = {}}}", r"line 1, inputs\.x\.name: expected a name, got a table$"),
        (f"name = '{'a b' * 100}'", r"got 'a ba.{40,60}\.\.\.$"),
        (
            "[inputs.serving.x]\nname = 'y'",
            r'there is no such key; .*; a name with a dot in it needs quotation marks, \[inputs\."serving\.x"\]$',
        ),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_line(text: str, message: str) -> None:
    assert re.search(message, refusal(text)), refusal(text)
    assert refusal(text).startswith("byoc.toml, line ")


@pytest.mark.parametrize("text", ["name = ", "name = 'a'\nname = 'b'", "[inputs.x", "a = " + "[" * 100_000])
def test_what_is_not_toml_is_refused_with_the_parsers_reason(text: str) -> None:
    assert refusal(text).startswith("byoc.toml is not valid TOML: ")


def test_a_media_type_whose_library_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from byoc_server.codecs import base

    monkeypatch.setattr(base, "_broken", {"pyarrow"})
    base.request_codecs.cache_clear()
    try:
        assert "application/x-parquet needs byoc-server[arrow]" in refusal("content_type = 'application/x-parquet'")
    finally:
        base.request_codecs.cache_clear()


LOCATED = '''
# [inputs.commented]
name = """
[inputs.text]
top = 1
""" # tail
list = [ # a comment with [ brackets
    "a = 1",
    ["[inputs.nested]"],
]
[ inputs . "a.b" ]
  name = '[x]' # c
'quoted key' . inner = { one = 1, two = 2 }
[inputs.x]
dotted.key = '''  # the rest of the text has the other quotation marks
LOCATED += """'''three
lines'''
columns = ["a",
  "b"]
[[many]]
z = "\\""
"""


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("name",), 3),
        (("list",), 7),
        (("inputs",), 11),
        (("inputs", "a.b"), 11),
        (("inputs", "a.b", "name"), 12),
        (("inputs", "a.b", "missing"), 11),
        (("inputs", "a.b", "quoted key", "inner", "two"), 13),
        (("inputs", "x"), 14),
        (("inputs", "x", "dotted", "key"), 15),
        (("inputs", "x", "columns"), 17),
        (("inputs", "commented"), 11),
        (("many", "z"), 20),
        (("top",), 0),
        ((), 0),
    ],
)
def test_a_key_is_found_where_it_stands(keys: tuple[str, ...], line: int) -> None:
    assert parse_toml(LOCATED)
    assert line_of(LOCATED, keys) == line


def parse_toml(text: str) -> object:
    import tomllib

    return tomllib.loads(text)


def test_an_error_about_what_stands_nowhere_names_no_line() -> None:
    assert TomlSource("f.toml", "a = 1").error(("b", "c d"), "is wrong").message == 'f.toml, b."c d": is wrong'


@LAWS
@given(st.text("[]{}='\"#.\\ \nab1,", max_size=60))
def test_any_text_is_a_config_or_refused(text: str) -> None:
    try:
        config = parse(text)
    except ModelLoadError as error:
        assert error.message.startswith("byoc.toml")  # noqa: PT017  # either outcome is right
    else:
        assert not config.inputs or "inputs" in text


def test_a_model_without_the_file_has_none(tmp_path: Path) -> None:
    assert read_config(tmp_path / "m.onnx") is None


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "byoc.toml").write_bytes(b"\xef\xbb\xbfname = 'x'\r\n")
    config = read_config(tmp_path / "m.onnx")
    assert config is not None
    assert (config.name, config.source.path) == ("x", str(tmp_path / "byoc.toml"))


def fill(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 * 1024 * 1024)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.mkdir, r"byoc\.toml is a folder$"),
        (os.mkfifo, r"byoc\.toml is no regular file$"),
        (lambda path: path.symlink_to("nowhere"), r"cannot read .*byoc\.toml: No such file"),
        (lambda path: path.write_bytes(b"name = 'x'\n# \xe9"), r"byoc\.toml, line 2: byte 0xe9 is not UTF-8$"),
        (fill, rf"byoc\.toml is larger than {MAX_BYTES} bytes$"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    make(tmp_path / "byoc.toml")
    with pytest.raises(ModelLoadError, match=message):
        read_config(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        ("l.txt", b"cat\ndog\n", ["cat", "dog", "2"]),
        ("l.txt", b"cat\r\n big dog", ["cat", " big dog", "2"]),
        ("l.txt", b"\xef\xbb\xbfcat\n\nfox\n", ["cat", "", "fox"]),
        ("l.json", b'["cat", "dog"]', ["cat", "dog", "2"]),
        ("l.JSON", b'{"1": "dog", "0": "cat"}', ["cat", "dog", "2"]),
        ("l.json", b'{"1": "dog"}', ["0", "dog", "2"]),
    ],
)
def test_labels_are_read_from_lines_and_json(tmp_path: Path, name: str, content: bytes, labels: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_labels(tmp_path / name).of(np.arange(3)).tolist() == labels


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", b"", "holds no labels$"),
        ("l.json", b"[]", "holds no labels$"),
        ("l.json", b"{}", "holds no labels$"),
        ("l.json", b"[1]", "expected an array of strings, or an object from index to label$"),
        ("l.json", b'{"0": 1}', "expected an array of strings, or an object"),
        ("l.json", b'"cat"', "expected an array of strings, or an object"),
        ("l.json", b'{"zero": "cat"}', "key 'zero' is not an index$"),
        ("l.json", b'{"-1": "cat"}', "key '-1' is not an index$"),
        ("l.json", b'{"99999999": "cat"}', "index 99999999 is beyond 10000000$"),
        ("l.json", b"[", "is not valid JSON: "),
        ("l.json", b"[" * 100_000, "is not valid JSON: it is nested too deeply$"),
        ("l.txt", b"\xff", "line 1: byte 0xff is not UTF-8$"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        read_labels(tmp_path / name)


def test_an_integer_that_python_does_not_read() -> None:
    assert refusal("name = 1" + "0" * 5000) == "byoc.toml holds an integer of more digits than Python reads"
