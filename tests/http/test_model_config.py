"""Models with a ``byoc.toml``, through the real server."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto, helper
from pyarrow import parquet

from tests.onnx_models import Shape, identity, save, value
from tests.server_process import ServerProcess, run_to_end, running

PERSON = """
name = "people"
content_type = "text/csv; header=present"
accept = "application/jsonlines"

[inputs."body.float"]
name = "body"
dtype = "float64"
columns = ["age", "height"]

[inputs.group]
dtype = "int32"
columns = ["team"]

[outputs]
return = ["place", "sum"]

[outputs.total]
name = "sum"

[outputs.group_out]
name = "place"
labels = ["first", "second"]
"""


def people(path: Path) -> Path:
    """Inputs ``body.float``, float32 (N, 2), and ``group``, int8 (N); outputs their sum, the group, and a spare."""
    nodes = [
        helper.make_node("ReduceSum", ["body.float"], ["all"], keepdims=1, noop_with_empty_axes=1),
        helper.make_node("MatMul", ["all", "ones"], ["total"]),
        helper.make_node("Identity", ["group"], ["group_out"]),
        helper.make_node("Identity", ["group"], ["spare"]),
    ]
    inputs = [value("body.float", TensorProto.FLOAT, ("N", 2)), value("group", TensorProto.INT8, ("N",))]
    outputs = [
        value("total", TensorProto.FLOAT, ("N", 1)),
        value("group_out", TensorProto.INT8, ("N",)),
        value("spare", TensorProto.INT8, ("N",)),
    ]
    ones = helper.make_tensor("ones", TensorProto.FLOAT, (2, 1), [1.0, 1.0])
    return save(path, nodes, inputs, outputs, [ones])


@pytest.fixture(scope="module")
def tabular(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("tabular")
    (folder / "byoc.toml").write_text(PERSON)
    with running("--model", str(people(folder / "model.onnx"))) as server:
        yield server
        assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Scores of four classes come in as tokens of any number, padded."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "classes.txt").write_text("cat\ndog\nfox\nowl\n")
    (folder / "byoc.toml").write_text(
        """
        [inputs.x]
        padding_value = -1000.0
        [outputs.y]
        name = "scores"
        softmax = true
        top_k = 2
        labels = "classes.txt"
        """
    )
    with running("--model", str(identity(folder / "model.onnx", shape=("N", "C")))) as server:
        yield server
        assert "Traceback" not in server.log


def parquet_file(columns: dict[str, list[float]]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


ROWS = [{"age": 30, "height": 1.5, "team": 1}, {"age": 40, "height": 2, "team": 0}]
ANSWERS = [{"place": "second", "sum": [31.5]}, {"place": "first", "sum": [42.0]}]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/csv; header=present", b"team,age,height\n1,30,1.5\n0,40,2\n"),
        ("text/csv", b"30,1.5,1\n40,2,0\n"),
        ("application/json", json.dumps({"instances": ROWS}).encode()),
        ("application/json", json.dumps({"inputs": {"body": [[30, 1.5], [40, 2]], "group": [1, 0]}}).encode()),
        ("application/json", json.dumps({"age": [30, 40], "height": [1.5, 2], "team": [1, 0]}).encode()),
        ("application/jsonlines", "\n".join(map(json.dumps, ROWS)).encode()),
        ("application/x-parquet", parquet_file({"team": [1, 0], "id": [7, 8], "age": [30, 40], "height": [1.5, 2.0]})),
    ],
)
def test_columns_come_by_name_in_every_table_and_record(tabular: ServerProcess, content_type: str, body: bytes) -> None:
    answer = tabular.invoke(body, Content_Type=content_type, Accept="application/json")
    assert (answer.status_code, answer.json()) == (200, {"predictions": ANSWERS})


def test_the_formats_of_the_file_count_where_the_client_says_nothing(tabular: ServerProcess) -> None:
    answer = tabular.invoke(b"height,age,team\n1.5,30,1\n2,40,0\n")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/jsonlines")
    assert [json.loads(line) for line in answer.content.splitlines()] == ANSWERS


def test_a_setting_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "byoc.toml").write_text('content_type = "text/csv"\naccept = "text/csv"\n')
    variables = {"BYOC_DEFAULT_CONTENT_TYPE": "application/jsonlines", "BYOC_DEFAULT_ACCEPT": "application/json"}
    with running("--model", str(identity(tmp_path / "m.onnx", shape=("N", 2))), environ=variables) as server:
        answer = server.invoke(b"[1, 2]\n[3, 4]\n")
        assert (answer.status_code, answer.json()) == (200, {"predictions": [[1, 2], [3, 4]]})


@pytest.mark.parametrize(
    ("record", "field", "got"),
    [
        ({"age": 1, "height": 2, "team": 300}, "group[0]", "300"),
        ({"age": 1e300, "height": 2, "team": 1}, "body[0][0]", "1e+300"),
        ({"age": 1, "height": "tall", "team": 1}, "instances[0].height", "'tall'"),
    ],
)
def test_a_value_that_does_not_fit_is_a_400_that_names_it(
    tabular: ServerProcess, record: dict[str, object], field: str, got: str
) -> None:
    answer = tabular.invoke(json.dumps({"instances": [record]}), Content_Type="application/json")
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["field"], error["got"]) == ("invalid_payload", field, got)


def test_an_index_without_a_label_is_its_own(tabular: ServerProcess) -> None:
    answer = tabular.invoke(b"age,height,team\n1,1,-7\n", Accept="text/csv")
    assert (answer.status_code, answer.text) == (200, "-7,2.0\n")


def test_the_log_says_what_clients_see(tabular: ServerProcess) -> None:
    (ready,) = tabular.events("ready")
    assert ready["model_name"] == "people"
    assert ready["config"].endswith("/byoc.toml")
    assert ready["inputs"] == ["body: float64[?, 2]", "group: int32[?]"]
    assert ready["outputs"] == ["place: string[?]", "sum: float32[?, 1]"]


def test_the_routes_of_the_model_have_its_name(tabular: ServerProcess) -> None:
    answer = tabular.session.get(f"{tabular.url}/v2/models/people", timeout=5)
    assert (answer.status_code, answer.json()["name"]) == (200, "people")


SCORES = {"instances": [[1, 2, 3, 2], [5, 1]]}
VALUES = [[0.534447, 0.196612], [0.982014, 0.017986]]
LABELS = [["fox", "dog"], ["cat", "dog"]]


def test_the_best_classes_come_with_their_labels_in_json(classifier: ServerProcess) -> None:
    answer = classifier.invoke(json.dumps(SCORES), Content_Type="application/json")
    assert answer.status_code == 200
    predictions = answer.json()["predictions"]
    np.testing.assert_allclose([row["scores"] for row in predictions], VALUES, atol=1e-5)
    assert [row["scores_labels"] for row in predictions] == LABELS


def test_the_best_classes_come_with_their_labels_in_csv(classifier: ServerProcess) -> None:
    body = "\n".join(map(json.dumps, SCORES["instances"]))
    answer = classifier.invoke(body, Content_Type="application/jsonlines", Accept="text/csv")
    assert answer.status_code == 200
    rows = [line.split(",") for line in answer.text.splitlines()]
    assert [row[2:] for row in rows] == LABELS
    np.testing.assert_allclose([[float(cell) for cell in row[:2]] for row in rows], VALUES, atol=1e-5)


def test_the_best_classes_come_with_their_labels_in_npz(classifier: ServerProcess) -> None:
    answer = classifier.invoke(json.dumps(SCORES), Content_Type="application/json", Accept="application/x-npz")
    assert answer.status_code == 200
    with np.load(io.BytesIO(answer.content)) as arrays:
        assert sorted(arrays) == ["scores", "scores_labels"]
        np.testing.assert_allclose(arrays["scores"], VALUES, atol=1e-5)
        assert arrays["scores_labels"].tolist() == LABELS


CROPPED = 'channels = "BGR", scale = 0.5, mean = [1, 2, 3], std = 2, resize = "crop", resize_to = 4'
PADDED = 'height = 3, width = 3, layout = "HWC", resize = "pad", fill = 7, shrink_on_load = true'
COLOUR, FILL = [10, 20, 30], [7, 7, 7]


@pytest.mark.parametrize(
    ("shape", "image", "picture", "record"),
    [
        (("N", 3, 2, 2), CROPPED, (4, 6), [[[7, 7]] * 2, [[4, 4]] * 2, [[1, 1]] * 2]),
        (("N", "H", "W", "C"), PADDED, (6, 2), [[FILL] * 3, [COLOUR] * 3, [FILL] * 3]),
    ],
)
def test_an_image_file_becomes_a_record(
    tmp_path: Path, shape: Shape, image: str, picture: tuple[int, int], record: list[object]
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "byoc.toml").write_text(
        f"""
        content_type = "image/png"
        [inputs.x]
        name = "picture"
        image = {{ {image} }}
        """
    )
    stream = io.BytesIO()
    pillow.new("RGB", picture, (10, 20, 30)).save(stream, "PNG")
    with running("--model", str(identity(tmp_path / "m.onnx", shape=shape))) as server:
        answer = server.invoke(stream.getvalue())
        assert (answer.status_code, answer.json()) == (200, {"predictions": [record]})
        assert server.events("ready")[0]["inputs"][0].startswith("picture: float32[")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('\n[inputs.z]\nname = "x"\n', r"line 2, inputs.z: the graph of the model has no such input; there is 'x'"),
        ("name = \n", "is not valid TOML: Invalid value (at line 1, column 8)"),
        ('[outputs.y]\ntop_k = 1\nlabels = "l.txt"', "line 3, outputs.y.labels: cannot read "),
    ],
)
def test_a_wrong_file_ends_the_start_with_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "byoc.toml").write_text(text)
    model = identity(tmp_path / "m.onnx")
    ended = run_to_end("--host", "127.0.0.1", "--port", "0", "--model", str(model))
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("byoc serve: error: ")]
    assert line.startswith(f"byoc serve: error: {tmp_path}/byoc.toml")
    assert message in line


def test_labels_cannot_make_an_answer_of_any_size(tmp_path: Path) -> None:
    """A byte of a request would become two thousand characters; a short request is served all the same."""
    model = identity(tmp_path / "model.onnx", TensorProto.UINT8, ("N", "pixels"))
    (tmp_path / "byoc.toml").write_text(f"[outputs.y]\nlabels = ['{'a' * 2000}', 'b']\n")
    body = io.BytesIO()
    np.save(body, np.zeros((1, 100_000), np.uint8))
    headers = {"Content_Type": "application/x-npy", "Accept": "application/x-npy"}
    with running("--model", str(model), "--max-queue-mib", "64") as server:
        answer = server.invoke(body.getvalue(), **headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
        assert "the answer could take 800000000 bytes" in answer.json()["error"]["message"]
        assert server.invoke("[[1, 1]]").json() == {"predictions": [["b", "b"]]}
        assert server.stop() == 0
