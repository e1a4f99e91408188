"""Make the demo model: a logistic regression on Fisher's iris data, as scikit-learn bundles them.

    pip install scikit-learn skl2onnx && python byoc_server/demo/make_iris.py

One input, ``features``: float32, shape (N, 4): sepal length, sepal width, petal length, petal width, in cm.
Two outputs: ``label``, string, shape (N,), and ``probabilities``, float32, shape (N, 3), in the order setosa,
versicolor, virginica.
"""

from __future__ import annotations

from pathlib import Path

from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

PATH = Path(__file__).parent / "iris.onnx"


def make() -> bytes:
    """Train and export."""
    iris = load_iris()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(iris.data, iris.target_names[iris.target])
    model = to_onnx(
        classifier,
        initial_types=[("features", FloatTensorType([None, 4]))],
        options={"zipmap": False},
        target_opset=17,
    )
    model.producer_version = ""  # the file depends on the data and on the graph, not on the day's exporter
    data: bytes = model.SerializeToString(deterministic=True)
    return data


if __name__ == "__main__":
    PATH.write_bytes(make())
    print(f"{PATH.name}: {PATH.stat().st_size} bytes")
