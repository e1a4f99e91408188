"""Python to paste: the calls that make a SageMaker endpoint of a pushed image."""

from __future__ import annotations

import re

from byoc_server.cli.container_engine import Image
from byoc_server.cli.ecr import Pushed


def snippet(pushed: Pushed, image: Image, partition: str) -> str:
    """Python that makes a SageMaker endpoint of the pushed image; role and model data are left to be filled in.

    The names follow the API's patterns for ``ModelName`` and ``InferenceAmiVersion`` (SageMaker API reference,
    CreateModel and ProductionVariant). A GPU image is built for CUDA 13, which the default AMIs cannot run.

    Args:
        pushed: where the image is.
        image: what it is made for.
        partition: of the account, such as ``aws``.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{pushed.repository.rpartition('/')[2]}-{pushed.tag}")[:63].strip("-")
    if image.gpu:
        instance, ami = "ml.g6.xlarge", '            "InferenceAmiVersion": "al2023-ami-sagemaker-inference-gpu-4-1",\n'
    else:
        instance, ami = "ml.c7g.large" if image.architecture == "arm64" else "ml.m7i.large", ""
    return f'''import boto3

sagemaker = boto3.client("sagemaker", region_name="{pushed.region}")
sagemaker.create_model(
    ModelName="{name}",
    ExecutionRoleArn="arn:{partition}:iam::{pushed.account}:role/YOUR-SAGEMAKER-ROLE",
    PrimaryContainer={{
        "Image": "{pushed.digest_uri}",
        "ModelDataUrl": "s3://YOUR-BUCKET/model.tar.gz",  # leave out when the model is in the image
    }},
)
sagemaker.create_endpoint_config(
    EndpointConfigName="{name}",
    ProductionVariants=[
        {{
            "VariantName": "AllTraffic",
            "ModelName": "{name}",
            "InstanceType": "{instance}",
{ami}            "InitialInstanceCount": 1,
        }}
    ],
)
sagemaker.create_endpoint(EndpointName="{name}", EndpointConfigName="{name}")'''
