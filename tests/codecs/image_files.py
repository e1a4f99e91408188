"""Image files and inputs that take them, in one line each."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from byoc_server.types import BatchAxis, ImageSpec, Signature, TensorSpec
from tests.codecs.signatures import Shape


def taking_images(
    image: ImageSpec, shape: Shape, dtype: str = "float32", batch_axis: BatchAxis = BatchAxis.DYNAMIC
) -> Signature:
    """One input ``x`` that takes images, and an output of the same kind."""
    tensor = TensorSpec("x", np.dtype(dtype), shape, image=image)
    size = shape[0] if batch_axis is BatchAxis.FIXED else None
    return Signature((tensor,), (TensorSpec("y", np.dtype(dtype), shape),), batch_axis, size)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours with a little noise."""
    rng = np.random.default_rng(width * 1000 + height)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noise = rng.integers(-4, 5, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG of any header and chunks."""
    header = struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks)


def tiff(orientation: int, order: str = ">", kind: int = 3, fields: int = 1) -> bytes:
    """An Exif block that says only which way up an image is."""
    head = b"MM\0*" if order == ">" else b"II*\0"
    return head + struct.pack(f"{order}IH2HIHHI", 8, fields, 0x0112, kind, 1, orientation, 0, 0)


def with_exif(jpeg: bytes, exif: bytes) -> bytes:
    """A JPEG with an Exif segment at its beginning."""
    data = b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + jpeg[2:]
