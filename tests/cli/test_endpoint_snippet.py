"""The Python to paste, run against a stand-in for SageMaker's API."""

from __future__ import annotations

import re

import pytest

from byoc_server.cli.container_engine import Image
from byoc_server.cli.ecr import Pushed
from byoc_server.cli.endpoint_snippet import snippet
from tests.cli.push_stand_ins import ACCOUNT, DIGEST, HOST, REGION, Aws


def pushed(repository: str = "team/my-model", tag: str = "1.2") -> Pushed:
    uri = f"{HOST}/{repository}"
    return Pushed(f"{uri}:{tag}", f"{uri}@{DIGEST}", ACCOUNT, REGION, repository, tag)


@pytest.mark.parametrize(
    ("image", "instance", "ami"),
    [
        (Image("amd64", 1, False, False), "ml.m7i.large", None),
        (Image("arm64", 1, False, False), "ml.c7g.large", None),
        (Image("amd64", 1, True, False), "ml.g6.xlarge", "al2023-ami-sagemaker-inference-gpu-4-1"),
    ],
)
def test_the_snippet_makes_an_endpoint(aws: Aws, image: Image, instance: str, ami: str | None) -> None:
    """As it is printed, once the role and the bucket are put in; names and values are those of SageMaker's API."""
    exec(snippet(pushed(), image, "aws"), {})
    model, config, endpoint = (
        aws.sagemaker[name] for name in ("CreateModel", "CreateEndpointConfig", "CreateEndpoint")
    )
    assert model["PrimaryContainer"]["Image"] == f"{HOST}/team/my-model@{DIGEST}"
    assert model["ExecutionRoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/YOUR-SAGEMAKER-ROLE"
    (variant,) = config["ProductionVariants"]
    assert (variant["ModelName"], variant["InstanceType"]) == (model["ModelName"], instance)
    assert variant.get("InferenceAmiVersion") == ami
    assert endpoint["EndpointConfigName"] == config["EndpointConfigName"]
    api = aws.client("sagemaker").meta.service_model
    assert instance in api.shape_for("ProductionVariantInstanceType").enum
    assert ami is None or ami in api.shape_for("ProductionVariantInferenceAmiVersion").enum
    for shape, text in [
        ("ModelName", model["ModelName"]),
        ("RoleArn", model["ExecutionRoleArn"]),
        ("ContainerImage", model["PrimaryContainer"]["Image"]),
        ("Url", model["PrimaryContainer"]["ModelDataUrl"]),
        ("EndpointConfigName", config["EndpointConfigName"]),
        ("EndpointName", endpoint["EndpointName"]),
    ]:
        limits = api.shape_for(shape).metadata
        assert re.fullmatch(limits["pattern"], text)
        assert len(text) <= limits["max"]


@pytest.mark.parametrize(
    ("repository", "tag", "name"),
    [("a.b_c", "latest", "a-b-c-latest"), ("team/x", "_1_", "x-1"), ("x" * 62, "1", "x" * 62)],
)
def test_names_in_the_snippet_are_what_sagemaker_takes(repository: str, tag: str, name: str) -> None:
    text = snippet(pushed(repository, tag), Image("amd64", 1, False, False), "aws-cn")
    assert f'ModelName="{name}"' in text
    assert "arn:aws-cn:iam::" in text
