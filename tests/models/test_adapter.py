"""What a ``byoc.toml`` makes of a signature, and of the tensors that come and go."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from byoc_server.errors import InvalidPayload, ModelLoadError
from byoc_server.models.adapter import Adapter, adapter_for, default_name
from byoc_server.types import BatchAxis, ImageSpec, Layout, Resize, Signature, Tensors, TensorSpec
from tests.codecs.signatures import ABSENT, Shape, assert_same, spec, texts


def signature(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec] = (), batch_axis: BatchAxis = BatchAxis.DYNAMIC
) -> Signature:
    return Signature(tuple(inputs), tuple(outputs) or (spec("y", "float32", (None, 3)),), batch_axis)


X = spec("x", "float32", (None, 4))
PLAIN = signature([X], [spec("y", "float32", (None, 3)), spec("z", "int64", (None,))])


def adapter(folder: Path, text: str, model: Signature = PLAIN) -> Adapter:
    (folder / "byoc.toml").write_text(text)
    return adapter_for(folder / "iris.onnx", model)


def refusal(folder: Path, text: str, model: Signature = PLAIN) -> str:
    with pytest.raises(ModelLoadError) as caught:
        adapter(folder, text, model)
    prefix = f"{folder}/byoc.toml, line "
    assert caught.value.message.startswith(prefix)
    return caught.value.message.removeprefix(prefix)


def inputs_of(made: Adapter) -> str:
    return " ".join(spec.describe() for spec in made.signature.inputs)


def outputs_of(made: Adapter) -> str:
    return " ".join(spec.describe() for spec in made.signature.outputs)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/iris.onnx", "iris"),
        ("classifier/model.onnx", "classifier"),
        ("classifier/12/model.onnx", "classifier"),
        ("opt/ml/model/model.onnx", "model"),
        ("opt/ml/model/1/model.ort", "model"),
        ("a/my.model.onnx", "my.model"),
    ],
)
def test_a_model_is_called_as_its_file_or_folder(tmp_path: Path, path: str, name: str) -> None:
    assert default_name(tmp_path / path) == name


def test_a_model_in_no_folder_is_called_model() -> None:
    assert default_name(Path("/model.onnx")) == "model"
    assert default_name(Path("/1/model.onnx")) == "model"


def test_without_the_file_clients_see_the_graph(tmp_path: Path) -> None:
    assert adapter_for(tmp_path / "iris.onnx", PLAIN) == Adapter(PLAIN, PLAIN, model_name="iris")


def test_what_names_the_server_only_adapts_nothing(tmp_path: Path) -> None:
    made = adapter(tmp_path, 'name = "flowers"\ncontent_type = "text/csv"\naccept = "text/csv"\n[inputs.x]\n')
    assert (made.prepare, made.present) == (None, None)
    assert (made.model_name, made.content_type, made.accept) == ("flowers", "text/csv", "text/csv")
    assert made.signature == PLAIN
    assert made.config_path == str(tmp_path / "byoc.toml")


def test_renamed_inputs_are_the_same_arrays(tmp_path: Path) -> None:
    model = signature([X, spec("w", "int64", (None,))])
    made = adapter(tmp_path, '[inputs.x]\nname = "features"\n', model)
    assert inputs_of(made) == "features: float32[?, 4] w: int64[?]"
    tensors: Tensors = {"features": np.zeros((2, 4), np.float32), "w": np.zeros(2, np.int64)}
    assert made.prepare is not None
    prepared = made.prepare(tensors)
    assert prepared["x"] is tensors["features"]
    assert prepared["w"] is tensors["w"]
    assert list(prepared) == ["x", "w"]


def test_two_inputs_may_change_names(tmp_path: Path) -> None:
    model = signature([X, spec("w", "float32", (None, 4))])
    made = adapter(tmp_path, '[inputs]\nx.name = "w"\nw.name = "x"\n', model)
    tensors: Tensors = {"x": np.zeros((1, 4), np.float32), "w": np.ones((1, 4), np.float32)}
    assert made.prepare is not None
    assert made.prepare(tensors)["x"] is tensors["w"]


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        ("float64", "float32", [0.5, 1e30]),
        ("int32", "float32", [3, -3]),
        ("uint8", "float16", [0, 255]),
        ("float64", "int64", [3.0, -3.0]),
        ("int64", "int8", [127, -128]),
        ("bool", "float32", [True, False]),
        ("int64", "bool", [1, 0]),
    ],
)
def test_values_are_cast_to_the_dtype_of_the_graph(tmp_path: Path, ours: str, theirs: str, values: list[float]) -> None:
    model = signature([spec("x", theirs, (None,))])
    made = adapter(tmp_path, f'[inputs.x]\nname = "v"\ndtype = "{ours}"\n', model)
    assert inputs_of(made) == f"v: {ours}[?]"
    assert made.prepare is not None
    assert_same(made.prepare({"v": np.array(values, ours)})["x"], np.array(values).astype(theirs))


@pytest.mark.parametrize(
    ("ours", "theirs", "value", "shown"),
    [
        ("int64", "int8", 300, "300"),
        ("float64", "int64", 1.5, "1.5"),
        ("float64", "int64", float("nan"), "nan"),
        ("float64", "float32", 1e300, "1e+300"),
        ("int64", "bool", 2, "2"),
    ],
)
def test_a_value_the_graph_does_not_hold_names_its_input_and_place(
    tmp_path: Path, ours: str, theirs: str, value: float, shown: str
) -> None:
    model = signature([spec("x", theirs, (None, 2)), spec("w", theirs, (None, 2))])
    made = adapter(tmp_path, f'[inputs.x]\nname = "v"\ndtype = "{ours}"\n', model)
    array = np.ones((5, 2), ours)
    array[3, 1] = value
    assert made.prepare is not None
    with pytest.raises(
        InvalidPayload, match=rf"^v\[3\]\[1\]: {re.escape(shown)} does not convert to {theirs}"
    ) as caught:
        made.prepare({"v": array, "w": np.ones((5, 2), theirs)})
    assert caught.value.details == {"field": "v[3][1]", "expected": f"a value of {theirs}", "got": shown}


def test_strings_stay_what_they_are(tmp_path: Path) -> None:
    model = signature([spec("x", "string", (None,)), spec("w", "int64", (None,))])
    made = adapter(tmp_path, '[inputs.x]\ndtype = "string"\n[inputs.w]\ndtype = "int8"\n', model)
    words = texts(["a"])
    assert made.prepare is not None
    assert made.prepare({"x": words, "w": np.zeros(1, np.int8)})["x"] is words


def test_columns_and_padding_are_for_clients_alone(tmp_path: Path) -> None:
    model = signature([X, spec("ids", "int64", (None, None))])
    made = adapter(tmp_path, '[inputs.x]\ncolumns = ["a", "b", "c", "d"]\n[inputs.ids]\npadding_value = 0\n', model)
    x, ids = made.signature.inputs
    assert x.columns == ("a", "b", "c", "d")
    assert ids.padding_value == 0
    assert made.prepare is None


def test_columns_say_how_long_a_record_of_an_open_axis_is(tmp_path: Path) -> None:
    made = adapter(tmp_path, '[inputs.x]\ncolumns = ["a", "b"]\n', signature([spec("x", "float32", (None, None))]))
    assert made.signature.inputs[0].columns == ("a", "b")


@pytest.mark.parametrize(
    ("dtype", "said", "value"),
    [
        ("float32", "nan", float("nan")),
        ("float32", "1", 1.0),
        ("int64", "-1", -1),
        ("int64", "2.0", 2),
        ("bool", "false", False),
        ("string", '""', ""),
    ],
)
def test_a_padding_value_is_of_the_dtype_that_clients_send(
    tmp_path: Path, dtype: str, said: str, value: object
) -> None:
    made = adapter(tmp_path, f"[inputs.x]\npadding_value = {said}\n", signature([spec("x", dtype, (None, None))]))
    padding_value = made.signature.inputs[0].padding_value
    assert padding_value == value or value != value
    assert type(padding_value) is type(value)


@pytest.mark.parametrize(
    ("text", "model", "message"),
    [
        (
            "[inputs.xx]\n",
            PLAIN,
            r"1, inputs\.xx: the graph of the model has no such input; did you mean 'x'\? There is 'x'$",
        ),
        ("[outputs.label]\n", PLAIN, r"1, outputs\.label: .* no such output; there is 'y', 'z'$"),
        ("[inputs.x]\ndtype = 'string'", PLAIN, r"2, inputs\.x\.dtype: strings and numbers do not become each other"),
        (
            "[inputs.x]\ncolumns = ['a', 'b', 'c']",
            PLAIN,
            r"2, inputs\.x\.columns: expected 4, .*x: float32\[\?, 4\].*3$",
        ),
        (
            "[inputs.x]\ncolumns = ['a', 'b']",
            signature([spec("x", "float32", (None, 2, None))]),
            r"columns: .* have open axes",
        ),
        ("[inputs.x]\npadding_value = 0", PLAIN, r"2, inputs\.x\.padding_value: records of x: .* have no open axis"),
        (
            "[inputs.x]\npadding_value = 0.5",
            signature([spec("x", "int8", (None, None))]),
            r"padding_value: expected a whole number from -128 to 127, got 0\.5$",
        ),
        (
            "[inputs.x]\npadding_value = 0",
            signature([spec("x", "string", (None, None))]),
            r"padding_value: expected a string, got 0$",
        ),
        (
            "[inputs.x]\n[inputs.w]\nname = 'x'",
            signature([X, spec("w", "float32", (None, 4))]),
            r"3, inputs\.w\.name: 'x' is also a name or a column of input 'x'$",
        ),
        (
            "[inputs.x]\ncolumns = ['a', 'b', 'c', 'w']\n[inputs.w]\n",
            signature([X, spec("w", "float32", (None, 4))]),
            r"2, inputs\.x\.columns: 'w' is also a name or a column of input 'w'$",
        ),
        (
            "[inputs.x]\nname = 'a'\n[inputs.w]\ncolumns = ['a', 'b', 'c', 'd']",
            signature([X, spec("w", "float32", (None, 4))]),
            r"4, inputs\.w\.columns: 'a' is also a name or a column of input 'x'$",
        ),
        ("[outputs.z]\nname = 'y'", PLAIN, r"2, outputs\.z\.name: 'y' is already output 'y'$"),
        ("[outputs.z]\nname = 'y_indices'\n[outputs.y]\ntop_k = 1", PLAIN, "2, outputs.z.name: 'y_indices' is already"),
        (
            "[outputs.y]\ntop_k = 1",
            signature([X], [spec("y_indices", "int64", (None,)), spec("y", "float32", (None, 3))]),
            r"2, outputs\.y\.top_k: 'y_indices' is already output 'y_indices'$",
        ),
        ("[outputs]\nreturn = ['q']", PLAIN, r"2, outputs\.return: there is no output 'q'; there is 'y', 'z'$"),
        (
            "[outputs]\nreturn = ['y']\n[outputs.y]\nname = 'scores'",
            PLAIN,
            r"2, outputs\.return: there is no output 'y'; clients call it 'scores'$",
        ),
        ("[outputs.z]\nsoftmax = true", PLAIN, r"2, outputs\.z\.softmax: it is for floats; the output is z: int64"),
        (
            "[outputs.y]\nsoftmax = true",
            signature([X], [spec("y", "float32", (None,))]),
            r"2, outputs\.y\.softmax: y: float32\[\?\] has no axis behind that of the records$",
        ),
        ("[outputs.z]\ntop_k = 3", PLAIN, r"2, outputs\.z\.top_k: z: int64\[\?\] has no axis behind"),
        (
            "[outputs.y]\ntop_k = 3",
            signature([X], [spec("y", "string", (None, 2))]),
            r"2, outputs\.y\.top_k: it is for numbers",
        ),
        (
            "[outputs.y]\nlabels = ['a', 'b', 'c']",
            PLAIN,
            r"2, outputs\.y\.labels: they need top_k, or an output of whole",
        ),
        ("[outputs.y]\ntop_k = 1\nlabels = ['a']", PLAIN, r"3, outputs\.y\.labels: expected 3 labels, .*, got 1$"),
        ("[outputs.z]\nlabels = 'l.txt'", PLAIN, r"2, outputs\.z\.labels: cannot read .*/l\.txt: No such file"),
        ("accept = 'application/octet-stream'", PLAIN, "1, accept: it carries one output only, and there are 2$"),
    ],
)
def test_what_does_not_fit_the_model_is_named_with_its_line(
    tmp_path: Path, text: str, model: Signature, message: str
) -> None:
    assert re.search(message, refusal(tmp_path, text, model)), refusal(tmp_path, text, model)


def image(folder: Path, keys: str, shape: Shape = (None, 3, 32, 48), dtype: str = "float32") -> ImageSpec:
    made = adapter(folder, f"[inputs.x.image]\n{keys}", signature([spec("x", dtype, shape)]))
    assert made.prepare is None
    found = made.signature.inputs[0].image
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("shape", "keys", "expected"),
    [
        ((None, 3, 32, 48), "", ImageSpec(32, 48)),
        ((None, 32, 48, 3), "", ImageSpec(32, 48, "RGB", Layout.HWC)),
        ((None, 1, 32, 48), "", ImageSpec(32, 48, "L", mean=(0.0,), std=(1.0,))),
        ((None, 32, 48), "", ImageSpec(32, 48, "L", Layout.HW, mean=(0.0,), std=(1.0,))),
        ((None, 3, None, None), "height = 8\nwidth = 9", ImageSpec(8, 9)),
        ((None, None, 8, 9), "layout = 'CHW'", ImageSpec(8, 9)),
        ((None, 3, 8, 3), "layout = 'HWC'", ImageSpec(3, 8, layout=Layout.HWC)),
        (
            (None, 3, 8, 9),
            "channels = 'BGR'\nmean = 2\nstd = [1, 2, 4]\nscale = 0.5",
            ImageSpec(8, 9, "BGR", scale=0.5, mean=(2, 2, 2), std=(1, 2, 4)),
        ),
        ((None, 3, 8, 9), "resize = 'crop'\nresize_to = 9", ImageSpec(8, 9, resize=Resize.CROP, resize_to=9)),
        ((None, 3, 8, 9), "resize = 'pad'\nfill = 7", ImageSpec(8, 9, resize=Resize.PAD, fill=7)),
        ((None, 3, 8, 9), "shrink_on_load = true", ImageSpec(8, 9, shrink_on_load=True)),
    ],
)
def test_an_image_input_is_completed_from_the_graph(
    tmp_path: Path, shape: Shape, keys: str, expected: ImageSpec
) -> None:
    assert image(tmp_path, keys, shape) == expected


def test_images_go_into_the_dtype_that_clients_send(tmp_path: Path) -> None:
    made = adapter(
        tmp_path, "[inputs.x]\ndtype = 'uint8'\n[inputs.x.image]\n", signature([spec("x", "float32", (None, 3, 8, 9))])
    )
    assert inputs_of(made) == "x: uint8[?, 3, 8, 9]"
    assert made.prepare is not None


@pytest.mark.parametrize(
    ("shape", "dtype", "keys", "message"),
    [
        (
            (None, 4),
            "float32",
            "",
            r"1, inputs\.x\.image: an image has 2 or 3 axes of numbers; the input is x: float32",
        ),
        ((None, 3, 8, 9), "string", "", r"1, inputs\.x\.image: an image has 2 or 3 axes of numbers"),
        ((None, 3, 8, 9), "bool", "", r"1, inputs\.x\.image: an image has 2 or 3 axes of numbers"),
        ((None, 3, 8, 3), "float32", "", "1, inputs.x.image: say by `layout` whether it is CHW or HWC"),
        ((None, 4, 8, 9), "float32", "", "1, inputs.x.image: say by `layout`"),
        ((None, 3, 8, 9), "float32", "layout = 'HW'", r"2, inputs\.x\.image\.layout: HW has 2 axes; the input is"),
        ((None, 3, 8, 9), "float32", "layout = 'HWC'", r"layout: HWC with RGB has 3 channels; the graph has 9"),
        ((None, 3, 8, 9), "float32", "channels = 'L'", r"2, .*channels: CHW with L has 1 channels; the graph has 3"),
        ((None, 8, 9), "float32", "channels = 'RGB'", r"channels: HW with RGB has 3 channels; the graph has 1"),
        ((None, 3, 8, None), "float32", "", "1, inputs.x.image: say the width of images in pixels by `width`"),
        ((None, 3, 8, 9), "float32", "height = 7", r"2, inputs\.x\.image\.height: expected 8, got 7; the graph has 8"),
        ((None, 3, 8, 9), "float32", "resize_to = 9", r'resize_to: it goes with resize = "crop" alone$'),
        ((None, 3, 8, 9), "float32", "resize = 'crop'\nresize_to = 8", r"3, .*resize_to: expected 9 or more, got 8"),
        ((None, 3, 8, 9), "float32", "fill = 0", r'2, .*fill: it goes with resize = "pad" alone$'),
        (
            (None, 3, 8, 9),
            "float32",
            "mean = [1, 2]",
            "mean: expected one number, or one for each channel of RGB, got 2$",
        ),
        ((None, 3, 8, 9), "uint8", "mean = 128", r"1, inputs\.x\.image: pixels become -128 to 127, which is beyond"),
        ((None, 3, 8, 9), "float64", "scale = 1e308", r"1, inputs\.x\.image: pixels become 0 to inf"),
    ],
)
def test_an_image_that_cannot_be_a_record_is_refused(
    tmp_path: Path, shape: Shape, dtype: str, keys: str, message: str
) -> None:
    text = f"[inputs.x.image]\n{keys}"
    model = signature([spec("x", dtype, shape)])
    assert re.search(message, refusal(tmp_path, text, model)), refusal(tmp_path, text, model)


def test_a_model_without_a_batch_axis_may_take_an_image(tmp_path: Path) -> None:
    model = signature([spec("x", "float32", (8, 9, 3))], batch_axis=ABSENT)
    made = adapter(tmp_path, "[inputs.x.image]\n", model).signature.inputs[0].image
    assert made == ImageSpec(8, 9, "RGB", Layout.HWC)


def test_outputs_come_in_the_order_asked_for_and_the_others_not_at_all(tmp_path: Path) -> None:
    tensors: Tensors = {"y": np.zeros((1, 3), np.float32), "z": np.zeros(1, np.int64)}
    made = adapter(tmp_path, "[outputs]\nreturn = ['z', 'y']\n")
    assert outputs_of(made) == "z: int64[?] y: float32[?, 3]"
    assert made.present is None
    made = adapter(tmp_path, "[outputs]\nreturn = ['class']\n[outputs.z]\nname = 'class'\n")
    assert outputs_of(made) == "class: int64[?]"
    assert made.present is not None
    assert list(made.present(tensors)) == ["class"]
    assert made.present(tensors)["class"] is tensors["z"]


def test_two_outputs_may_change_names(tmp_path: Path) -> None:
    tensors: Tensors = {"y": np.zeros((1, 3), np.float32), "z": np.zeros(1, np.int64)}
    made = adapter(tmp_path, "[outputs]\ny.name = 'z'\nz.name = 'y'\n")
    assert outputs_of(made) == "z: float32[?, 3] y: int64[?]"
    assert made.present is not None
    assert made.present(tensors)["z"] is tensors["y"]


def test_scores_become_the_best_with_their_labels(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("cat\ndog\nfox\n")
    made = adapter(
        tmp_path,
        """
        [outputs.y]
        name = "scores"
        softmax = true
        top_k = 2
        labels = "words.txt"
        [outputs.z]
        labels = ["no", "yes"]
        """,
    )
    assert outputs_of(made) == "scores: float32[?, 2] scores_labels: string[?, 2] z: string[?]"
    assert made.present is not None
    answer = made.present({"y": np.array([[0, 9, 9]], np.float32), "z": np.array([1])})
    assert answer["scores"].round(3).tolist() == [[0.5, 0.5]]
    assert answer["scores_labels"].tolist() == [["dog", "fox"]]
    assert answer["z"].tolist() == ["yes"]


def test_only_the_labels_may_be_asked_for(tmp_path: Path) -> None:
    made = adapter(tmp_path, "[outputs]\nreturn = ['y_labels']\n[outputs.y]\ntop_k = 1\nlabels = ['a', 'b', 'c']\n")
    assert outputs_of(made) == "y_labels: string[?, 1]"
    assert made.present is not None
    answer = made.present({"y": np.array([[0, 9, 9]], np.float32), "z": np.array([1])})
    assert {name: array.tolist() for name, array in answer.items()} == {"y_labels": [["b"]]}


def test_a_model_without_a_batch_axis_works_along_its_last_axis(tmp_path: Path) -> None:
    model = signature([spec("x", "float32", (4,))], [spec("y", "float32", (3,))], ABSENT)
    made = adapter(tmp_path, "[outputs.y]\ntop_k = 1\n", model)
    assert outputs_of(made) == "y: float32[1] y_indices: int64[1]"
    assert made.present is not None
    assert made.present({"y": np.array([1, 5, 2], np.float32)})["y_indices"].tolist() == [1]


def test_labels_by_index_may_be_fewer_than_the_classes_and_not_beyond_them(tmp_path: Path) -> None:
    text = "[outputs.y]\ntop_k = 1\nlabels = 'l.json'\n"
    (tmp_path / "l.json").write_text('{"1": "dog"}')
    made = adapter(tmp_path, text)
    assert made.present is not None
    answer = made.present({"y": np.eye(3, dtype=np.float32), "z": np.array([1])})
    assert answer["y_labels"].tolist() == [["0"], ["dog"], ["2"]]
    (tmp_path / "l.json").write_text('{"3": "dog"}')
    assert "expected 3 labels" in refusal(tmp_path, text)


def test_the_number_of_labels_is_not_known_where_the_axis_is_open(tmp_path: Path) -> None:
    model = signature([X], [spec("y", "float32", (None, None))])
    made = adapter(tmp_path, "[outputs.y]\ntop_k = 5\nlabels = ['a']\n", model)
    assert made.present is not None
    assert made.present({"y": np.array([[1, 2]], np.float32)})["y_labels"].tolist() == [["1", "a"]]


def test_the_examples_of_the_documentation_are_right(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "configure-a-model.md").read_text()
    classifier, tabular, padded = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "labels.txt").write_text("tabby\n" * 1000)
    model = signature([spec("input.1", "float32", (None, 3, 224, 224))], [spec("logits", "float32", (None, 1000))])
    made = adapter(tmp_path, classifier, model)
    assert inputs_of(made) == "picture: float32[?, 3, 224, 224]"
    assert outputs_of(made) == "scores: float32[?, 2] scores_labels: string[?, 2]"
    model = signature([spec("person", "float32", (None, 2)), spec("tokens", "int64", (None, None))])
    assert inputs_of(adapter(tmp_path, tabular, model)) == "person: float64[?, 2] tokens: int64[?, ?]"
    features = spec("features", "float32", (None, None, 80))
    model = signature([features, spec("features_mask", "int64", (None, None))])
    assert [given.padding_value for given in adapter(tmp_path, padded, model).signature.inputs] == [0.0, 0]
    with pytest.raises(ModelLoadError) as caught:
        adapter(tmp_path, "\n" * 4 + "inputs.x.column = []")
    assert caught.value.message.removeprefix(str(tmp_path)) in page
