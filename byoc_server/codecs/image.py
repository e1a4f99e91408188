"""``image/jpeg``, ``image/png``, ``image/webp`` and ``application/x-image``: an image file is one record.

The first bytes of the file say which of the three formats it is, whatever media type it comes under; the last name, of
SageMaker's built-in algorithms for images, stands for any of them. ``ImageSpec`` says what becomes of the pixels.

What a file may hold beside 8-bit RGB: grey, palettes and CMYK are converted as Pillow's ``convert`` does it; of 16
bits the upper 8 are kept; transparency is dropped, not put on a background, as in the usual pipelines for training;
of an animation the first frame is taken; the orientation of Exif is applied, colour profiles are not.

Resizing is Pillow's bilinear filter, which looks at all the pixels that one of the result stands for. The pixels are
those of ``Image.open(...).convert("RGB").resize(...)``. Where ``ImageSpec.shrink_on_load`` allows it, a JPEG is decoded
at a fraction of its size: of 640 x 480 pixels for 224 x 224 in five eighths of the time, of 12 megapixels in a third,
and pixels differ by 1 to 3 of 255 in the mean, along fine edges by up to 45.
"""

from __future__ import annotations

import io
import math
from typing import cast

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from byoc_server.codecs.base import DecodeOptions
from byoc_server.codecs.images.header import ImageHeader, read_header
from byoc_server.codecs.images.pixels import Pixels, normalised, padded, record_shape_of, value_table
from byoc_server.codecs.values.conform import fits, shape_text
from byoc_server.errors import InvalidPayload, TensorsTooLarge, UnsupportedMediaType
from byoc_server.types import Array, ImageSpec, Resize, Signature, Tensors, TensorSpec

# Not by Image.open: that tries other formats, too, and warns by way of the whole process.
_READERS: dict[str, type[ImageFile]] = {"JPEG": JpegImageFile, "PNG": PngImageFile, "WEBP": WebPImageFile}
_BYTES_PER_PIXEL = {"JPEG": 8, "PNG": 8, "WEBP": 16}
"""What decoding takes at its worst: Pillow's pixels have 4 bytes, and there are two copies of them, of WebP four."""
_BYTES_PER_TURNED_PIXEL = 4
"""Of one more copy, where an image has to be turned upright."""
_SHOWN_CHARACTERS = 100
_MAX_PIXELS = 64 * 2**20
_MAX_SIDE_PIXELS = 65535
"""As in JPEG. Resizing takes time and memory by the side, too, and Pillow lets no other thread run meanwhile."""
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation of Exif -> what turns the image upright."""
_SIDEWAYS = 5
"""From this orientation on width and height change places."""

_Box = tuple[float, float, float, float]


def decode(body: bytes, signature: Signature, options: DecodeOptions) -> Tensors:
    """Take the body as one image, for the one input of the model. See ``Codec.decode``."""
    spec = signature.sole_input
    if spec is None:
        raise UnsupportedMediaType(
            "an image carries one input, the model has "
            + ", ".join(spec.describe() for spec in signature.inputs)
            + '; send the file as a part of multipart/form-data, or as {"b64": ...} in JSON',
            expected="multipart/form-data or application/json",
        )
    record = record_from_image(body, spec, signature.record_shapes[spec.name], "body", options.max_tensor_bytes)
    return {spec.name: record[np.newaxis] if signature.batched else record}


def record_from_image(
    data: bytes, spec: TensorSpec, record_shape: tuple[int | None, ...], field: str, max_bytes: int
) -> Array:
    """Turn an image file into one record of an input.

    Args:
        data: the file.
        spec: the input.
        record_shape: shape of one record of it.
        field: how error messages call the file.
        max_bytes: what decoding may take.

    Returns:
        Array of ``spec.dtype`` that fits ``record_shape``.

    Raises:
        InvalidPayload: the file is no image or is damaged, or what it becomes does not fit the input.
        TensorsTooLarge: it has too many pixels.
        UnsupportedMediaType: the input takes no images.
    """
    return record_from_header(read_header(data, field), spec, record_shape, field, max_bytes)


def record_from_header(
    header: ImageHeader, spec: TensorSpec, record_shape: tuple[int | None, ...], field: str, max_bytes: int
) -> Array:
    """As ``record_from_image``, of a file whose header has been read."""
    image = spec.image
    if image is None:
        raise UnsupportedMediaType(
            f"{field}: input {spec.describe()} takes no images: byoc.toml does not say how one becomes a tensor, "
            f"which the table [inputs.{spec.name}.image] would",
            field=field,
            expected=spec.describe(),
        )
    shape = record_shape_of(image)
    if not fits(shape, record_shape):
        raise InvalidPayload(
            f"{field}: images are declared to become records of shape {shape_text(shape)}, input {spec.name!r} takes "
            f"{shape_text(record_shape)}",
            field=field,
            expected=shape_text(record_shape),
            got=shape_text(shape),
        )
    _require_size(header, field, max_bytes)
    record_bytes = math.prod(shape) * spec.dtype.itemsize
    if record_bytes > max_bytes:
        raise TensorsTooLarge(
            f"{field}: a record of input {spec.name!r} takes {record_bytes} bytes",
            field=field,
            expected=f"at most {max_bytes} bytes",
            got=f"{record_bytes} bytes",
        )
    try:
        value_table(image, spec.dtype)
    except ValueError as error:
        fault = str(error)
        reason = f"{fault}; the normalisation in byoc.toml does not suit the input"
    else:
        try:
            return normalised(_pixels(header, image), image, spec.dtype)
        except Exception as error:  # Pillow lets out whatever its readers raise at a damaged file
            fault = (str(error) or type(error).__name__)[:_SHOWN_CHARACTERS]
            reason = f"the {header.format} file cannot be decoded: {fault}"
    raise InvalidPayload(f"{field}: {reason}", field=field, expected=f"an image for input {spec.name!r}", got=fault)


def _require_size(header: ImageHeader, field: str, max_bytes: int) -> None:
    """Refuse an image before it is decoded if that takes too much. Raises ``TensorsTooLarge``."""
    pixel_bytes = _BYTES_PER_PIXEL[header.format]
    if header.orientation in _TRANSPOSE:
        pixel_bytes += _BYTES_PER_TURNED_PIXEL
    most = min(_MAX_PIXELS, max_bytes // pixel_bytes)
    if header.width * header.height <= most and max(header.width, header.height) <= _MAX_SIDE_PIXELS:
        return
    expected = f"at most {most} pixels, and {_MAX_SIDE_PIXELS} a side"
    got = f"{header.width} x {header.height}"
    raise TensorsTooLarge(
        f"{field}: an image of {got} pixels is too large: {expected}, are decoded",
        field=field,
        expected=expected,
        got=got,
    )


def _pixels(header: ImageHeader, image: ImageSpec) -> Pixels:
    """Decode, turn upright, convert and resize.

    Returns:
        Array of shape (height, width) for grey, else (height, width, 3), of the size that the model takes.
    """
    file = _READERS[header.format](io.BytesIO(header.data))
    mode = "L" if image.channels == "L" else "RGB"
    if image.shrink_on_load:
        upright = (header.width, header.height)
        size, _ = _geometry(upright[::-1] if header.orientation >= _SIDEWAYS else upright, image)
        file.draft(mode, size[::-1] if header.orientation >= _SIDEWAYS else size)
    file.load()
    picture: Image.Image = file
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode != mode:
        picture = picture.convert(mode)
    if header.orientation in _TRANSPOSE:
        picture = picture.transpose(_TRANSPOSE[header.orientation])
    size, box = _geometry(picture.size, image)
    pixels = cast(Pixels, np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box)))
    return padded(pixels, image) if image.resize is Resize.PAD else pixels


def _geometry(size: tuple[int, int], image: ImageSpec) -> tuple[tuple[int, int], _Box]:
    """How an image is resized.

    Lengths are cut to whole pixels and the middle is rounded to one as torchvision's ``Resize`` and ``CenterCrop`` do.

    Args:
        size: its width and height.
        image: what the model takes.

    Returns:
        Width and height it gets, and the part of it that is taken for that: left, top, right, bottom.
    """
    (width, height), wanted = size, (image.width, image.height)
    whole = (0.0, 0.0, float(width), float(height))
    if image.resize is Resize.STRETCH:
        return wanted, whole
    is_wider = width * image.height >= height * image.width
    if image.resize is Resize.PAD:
        if is_wider:
            return (image.width, max(1, round(height * image.width / width))), whole
        return (max(1, round(width * image.height / height)), image.height), whole
    covering = _scaled_to_cover(size, image, is_wider)
    # Only the part that is kept is resized: of an image a thousand times as long as wide the whole would be enormous.
    left, top = (round((s - w) / 2) for s, w in zip(covering, wanted, strict=True))
    factors = width / covering[0], height / covering[1]
    right, bottom = (left + image.width) * factors[0], (top + image.height) * factors[1]
    return wanted, (left * factors[0], top * factors[1], min(right, width), min(bottom, height))


def _scaled_to_cover(size: tuple[int, int], image: ImageSpec, is_wider: bool) -> tuple[int, int]:
    width, height = size
    if image.resize_to is not None:
        shorter = min(size)
        return width * image.resize_to // shorter, height * image.resize_to // shorter
    if is_wider:
        return width * image.height // height, image.height
    return image.width, height * image.width // width
