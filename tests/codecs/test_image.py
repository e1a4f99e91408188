"""``image/*``: files of three formats, whole and damaged, as records."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from byoc_server.codecs import image as codec
from byoc_server.codecs.base import DecodeOptions, codecs_by_media_type, request_codecs
from byoc_server.codecs.images.header import read_header
from byoc_server.errors import InvalidPayload, TensorsTooLarge, UnsupportedMediaType
from byoc_server.types import BatchAxis, ImageSpec, Layout, Resize, Signature
from tests.codecs.image_files import chunk, picture, png, saved, taking_images, tiff, with_exif
from tests.codecs.signatures import ABSENT, OPTIONS, assert_same, one, several
from tests.codecs.test_roundtrip import LAWS, assert_tensors_or_refusal

ENTRY = codecs_by_media_type()["application/x-image"]
RAW = ImageSpec(6, 8, "RGB", Layout.HWC)
PIXELS = taking_images(RAW, (None, 6, 8, 3), "uint8")
"""Gives the pixels themselves."""
JPEG = saved(picture(8, 6), "JPEG")
PNG = saved(picture(8, 6), "PNG")
WEBP = saved(picture(8, 6), "WEBP", lossless=True)


def read(body: bytes, signature: Signature = PIXELS) -> Any:
    return codec.decode(body, signature, OPTIONS)["x"]


def refusal(body: bytes, signature: Signature = PIXELS, options: DecodeOptions = OPTIONS) -> InvalidPayload:
    with pytest.raises(InvalidPayload) as caught:
        codec.decode(body, signature, options)
    assert caught.value.details["field"] == "body"
    assert caught.value.details["got"]
    return caught.value


def plain(body: bytes, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Any:
    return np.asarray(Image.open(io.BytesIO(body)).convert(mode).resize(size, Image.Resampling.BILINEAR))


def test_the_rows() -> None:
    entries = [e for e in request_codecs() if e.module == "byoc_server.codecs.image"]
    assert [e.media_type for e in entries] == ["image/jpeg", "image/png", "image/webp", "application/x-image"]
    assert all(e.inline_bytes == 0 and not e.answers and e.extra == "image" for e in entries)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(8, 6), (61, 47), (3, 2), (1, 200)])
def test_pixels_are_those_of_pillow(kind: str, size: tuple[int, int]) -> None:
    """Checklist 80."""
    body = saved(picture(*size), kind)
    assert_same(read(body), plain(body)[np.newaxis])


def test_as_a_training_pipeline_has_it() -> None:
    body = saved(picture(64, 48), "JPEG", quality=90)
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    spec = ImageSpec(32, 32, scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    expected = ((plain(body, (32, 32)).astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)
    record = read(body, taking_images(spec, (None, 3, 32, 32)))
    np.testing.assert_allclose(record, expected[np.newaxis], rtol=1e-5, atol=1e-6, strict=True)


@pytest.mark.parametrize(
    ("shape", "batch_axis", "expected"),
    [
        ((None, 6, 8, 3), BatchAxis.DYNAMIC, (1, 6, 8, 3)),
        ((4, 6, 8, 3), BatchAxis.FIXED, (1, 6, 8, 3)),
        ((6, 8, 3), ABSENT, (6, 8, 3)),
        ((None, None, None, 3), BatchAxis.DYNAMIC, (1, 6, 8, 3)),
    ],
)
def test_one_record(shape: tuple[int | None, ...], batch_axis: BatchAxis, expected: tuple[int, ...]) -> None:
    assert read(PNG, taking_images(RAW, shape, "float32", batch_axis)).shape == expected


# What a file may hold beside 8-bit RGB


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16"])
@pytest.mark.parametrize("channels", ["RGB", "L"])
def test_modes_of_png(mode: str, channels: str) -> None:
    if mode == "I;16":
        values = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1360
        body, upper = saved(Image.fromarray(values), "PNG"), (values >> 8).astype(np.uint8)
        expected = upper if channels == "L" else np.repeat(upper[..., np.newaxis], 3, 2)
    else:
        body = saved(picture(8, 6, mode), "PNG")
        expected = plain(body, mode=channels)
    layout = Layout.HWC if channels == "RGB" else Layout.HW
    shape = (None, *expected.shape)
    assert_same(read(body, taking_images(ImageSpec(6, 8, channels, layout), shape, "uint8")), expected[np.newaxis])


def test_16_bit_colours() -> None:
    row = b"\0" + struct.pack(">24H", *range(0, 24 * 2700, 2700))
    body = png(8, 6, chunk(b"IDAT", zlib.compress(row * 6)), chunk(b"IEND"), depth=16)
    assert read(body)[0, 0].ravel().tolist() == [value >> 8 for value in range(0, 24 * 2700, 2700)]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_dropped(kind: str) -> None:
    """Checklist 80: the colours are those below it, and never those of a background."""
    image = picture(8, 6)
    image.putalpha(Image.new("L", image.size, 3))
    body = saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert_same(read(body)[0], np.asarray(picture(8, 6)))


def test_transparent_palettes_and_colours() -> None:
    indexed = picture(8, 6).quantize(8)
    assert_same(read(saved(indexed, "PNG", transparency=bytes(8))), read(saved(indexed, "PNG")))
    assert_same(read(saved(picture(8, 6), "PNG", transparency=(1, 2, 3))), read(PNG))


def test_cmyk_and_grey_jpeg() -> None:
    for mode in ("CMYK", "L"):
        body = saved(picture(8, 6, mode), "JPEG")
        assert_same(read(body)[0], plain(body))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [picture(8, 6), Image.new("RGB", (8, 6), (1, 2, 3))]
    body = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(body)).n_frames == 2  # type: ignore[attr-defined]  # of every image that has frames
    assert_same(read(body)[0], np.asarray(frames[0]))


def test_an_image_behind_an_image_is_left_alone() -> None:
    """Phones put films and second images behind a JPEG."""
    assert_same(read(saved(picture(8, 6), "MPO", save_all=True, append_images=[picture(8, 6)])), read(JPEG))
    assert_same(read(JPEG + b"\xff\xda" * 1000), read(JPEG))


# Which way up


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    body = saved(picture(12, 5), kind, exif=exif, **options)
    upright = plain(body, (12, 5))
    if 2 <= orientation <= 8:
        flipped = {2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
        turned = upright.transpose(1, 0, 2)
        flipped |= {5: turned, 6: turned[:, ::-1], 7: turned[::-1, ::-1], 8: turned[::-1]}
        upright = flipped[orientation]
    height, width = upright.shape[:2]
    signature = taking_images(ImageSpec(height, width, "RGB", Layout.HWC), (None, height, width, 3), "uint8")
    assert_same(read(body, signature)[0], np.ascontiguousarray(upright))


@pytest.mark.parametrize(
    ("exif", "expected"),
    [
        (tiff(6), 6),
        (tiff(6, "<"), 6),
        (tiff(6, fields=65535), 6),
        (tiff(0), 1),
        (tiff(9), 1),
        (tiff(6, kind=4), 1),
        (tiff(6, fields=0), 1),
        (b"", 1),
        (b"MM", 1),
        (b"XX" + tiff(6)[2:], 1),
        (tiff(6)[:-8], 1),
        (b"MM\0*\xff\xff\xff\xff", 1),
        (b"MM\0*\0\0\0\x08\xff\xff" + bytes(12 * 2000), 1),
    ],
)
def test_exif(exif: bytes, expected: int) -> None:
    """Checklist 36: whatever it says, the image is read."""
    assert read(with_exif(JPEG, exif)).shape == (1, 6, 8, 3)
    assert read_header(with_exif(JPEG, exif), "body").orientation == expected


def test_first_exif_counts() -> None:
    assert read_header(with_exif(with_exif(JPEG, tiff(3)), tiff(6)), "body").orientation == 6


# Sizes


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (33, 32), (8, 6), (5, 3)])
@pytest.mark.parametrize("resize_to", [None, 8, 11])
def test_crop(size: tuple[int, int], resize_to: int | None) -> None:
    """The whole is resized and the middle cut out, as in training; here only the middle is resized."""
    body = saved(picture(*size), "PNG")
    spec = replace(RAW, resize=Resize.CROP, resize_to=resize_to)
    if resize_to:
        scaled = (size[0] * resize_to // min(size), size[1] * resize_to // min(size))
    elif size[0] * 6 >= size[1] * 8:
        scaled = (size[0] * 6 // size[1], 6)
    else:
        scaled = (8, size[1] * 8 // size[0])
    whole = plain(body, scaled)
    top, left = round((scaled[1] - 6) / 2), round((scaled[0] - 8) / 2)
    record = read(body, taking_images(spec, (None, 6, 8, 3), "uint8"))[0]
    np.testing.assert_allclose(record.astype(int), whole[top : top + 6, left : left + 8], atol=1)


@pytest.mark.parametrize(
    ("size", "inner"), [((16, 6), (3, 8)), ((4, 6), (6, 4)), ((8, 6), (6, 8)), ((900, 1), (1, 8)), ((1, 900), (6, 1))]
)
def test_pad(size: tuple[int, int], inner: tuple[int, int]) -> None:
    body = saved(picture(*size), "PNG")
    spec = replace(RAW, resize=Resize.PAD, fill=9)
    expected = np.full((6, 8, 3), 9, np.uint8)
    top, left = (6 - inner[0]) // 2, (8 - inner[1]) // 2
    expected[top : top + inner[0], left : left + inner[1]] = plain(body, inner[::-1])
    assert_same(read(body, taking_images(spec, (None, 6, 8, 3), "uint8"))[0], expected)


def test_crop_of_a_line_takes_no_more_than_the_line() -> None:
    """Checklist 84: resized as a whole it would be 8 pixels wide and 400 000 high."""
    body = saved(Image.new("RGB", (1, 50_000), (5, 6, 7)), "PNG")
    tracemalloc.start()
    try:
        record = read(body, taking_images(replace(RAW, resize=Resize.CROP), (None, 6, 8, 3), "uint8"))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert (record == [5, 6, 7]).all()


@pytest.mark.parametrize("resize", Resize)
@pytest.mark.parametrize("orientation", [1, 6])
def test_shrink_on_load(resize: Resize, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Allowed to, a JPEG is decoded at a fraction of its size, and other files as ever."""
    drafts: list[Any] = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda *args: drafts.append(draft(*args)))
    spec = replace(RAW, resize=resize)
    exact = taking_images(spec, (None, 6, 8, 3), "uint8")
    shrunk = taking_images(replace(spec, shrink_on_load=True), (None, 6, 8, 3), "uint8")
    smooth = Image.linear_gradient("L").resize((200, 160)).convert("RGB")
    body = with_exif(saved(smooth, "JPEG"), tiff(orientation))
    assert np.abs(read(body, shrunk).astype(int) - read(body, exact)).mean() < 3
    ((_, box),) = drafts
    assert box[2] < 200
    assert_same(read(PNG, shrunk), read(PNG, exact))


# Models and images that do not go together


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        (one(shape=(None, 3, 6, 8)), r"input x: float32\[\?, 3, 6, 8\] takes no images: .*\[inputs.x.image\]"),
        (one("string", (None,)), "takes no images"),
        (several(("a", "float32", (None,)), ("b", "uint8", (None,))), "the model has a: .*multipart/form-data"),
    ],
)
def test_models_that_take_no_images(signature: Signature, words: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=words):
        codec.decode(PNG, signature, OPTIONS)


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        (taking_images(RAW, (None, 3, 6, 8)), r"body: images are declared to become records of shape \[6, 8, 3\]"),
        (taking_images(RAW, (None, 6, 8)), r"input 'x' takes \[6, 8\]"),
        (
            taking_images(RAW, (None, 6, 8, 3), "int8"),
            "body: pixels become 0 to 255, which is beyond the range of int8",
        ),
        (taking_images(RAW, (None, 6, 8, 3), "bool"), "body: the input takes no numbers"),
    ],
)
def test_declarations_that_do_not_fit(signature: Signature, words: str) -> None:
    with pytest.raises(InvalidPayload, match=words):
        codec.decode(PNG, signature, OPTIONS)


# Bad files


def jpeg_segment(marker: int, data: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def vp8x(width: int, height: int, flags: int = 0, rest: bytes = b"") -> bytes:
    data = bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<I", 10) + data + rest
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


SOF = JPEG[JPEG.index(b"\xff\xc0") :][:19]
SOS = JPEG.index(b"\xff\xda")
IDAT = chunk(b"IDAT", zlib.compress((b"\0" + bytes(24)) * 6))
END = chunk(b"IEND")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body: it is not a JPEG, PNG or WebP file"),
        (b"GIF89a" + bytes(20), "not a JPEG, PNG or WebP"),
        (saved(picture(8, 6), "BMP"), "not a JPEG, PNG or WebP"),
        (saved(picture(8, 6), "TIFF"), "not a JPEG, PNG or WebP"),
        (JPEG[:3], "the JPEG ends at byte 3, before its pixels"),
        (JPEG[:SOS], f"the JPEG ends at byte {SOS}, before its pixels"),
        (JPEG[:2] + b"\xff\xd9" + JPEG[2:], "the JPEG ends at byte 2, before its pixels"),
        (JPEG[:2] + b"\xff\xe5\xff\xff" + JPEG[2:], "the segment at byte 2 claims 65535 bytes"),
        (JPEG[:2] + b"\xff\xe5\x00\x01" + JPEG[2:], "the segment at byte 2 claims 1 bytes"),
        (JPEG[:SOS] + SOF + JPEG[SOS:], f"the frame header at byte {SOS} is the second one or too short"),
        (JPEG.replace(SOF, b""), "no frame header before the pixels"),
        (JPEG.replace(SOF, jpeg_segment(0xC0, b"\x08\0\x06\0")), "is the second one or too short"),
        (JPEG.replace(SOF, SOF[:5] + b"\0\0" + SOF[7:]), "the image is 8 x 0 pixels"),
        (JPEG.replace(SOF, SOF[:4] + b"\x0c" + SOF[5:]), "the JPEG file cannot be decoded: cannot handle 12-bit"),
        (JPEG.replace(SOF, jpeg_segment(0xC0, b"\x08\0\x06\0\x08\0")), "the JPEG file cannot be decoded"),
        (JPEG[:-20], "the JPEG file cannot be decoded: image file is truncated"),
        (JPEG[:2] + jpeg_segment(0xFE) * 5000 + JPEG[2:], "the file has more than 4096 parts"),
        (PNG[:8], "the PNG is truncated: chunk b'' at byte 8 ends at 20, the file at 8"),
        (PNG[:-1], "the PNG is truncated: chunk b'IEND'"),
        (PNG[:60], "the PNG is truncated: chunk b'IDAT'"),
        (png(8, 6, IDAT), "the PNG is truncated"),
        (png(8, 6, b"\xff\xff\xff\xffIDAT" + IDAT, END), "ends at 4294967340"),
        (PNG[:8] + IDAT + END, "the PNG does not begin with the chunk IHDR"),
        (PNG[:8] + chunk(b"IHDR", b"\0") + IDAT + END, "the PNG does not begin with the chunk IHDR"),
        (png(0, 6, IDAT, END), "the image is 0 x 6 pixels"),
        (png(8, 6, END), "the PNG file cannot be decoded"),
        (png(8, 6, chunk(b"IDAT", b"rubbish"), END), "the PNG file cannot be decoded"),
        (png(8, 6, IDAT, END, depth=3), "the PNG file cannot be decoded"),
        (png(8, 6, IDAT[:-1] + b"?", b"??" + END), "the PNG is truncated"),
        (png(8, 6, chunk(b"tEXt") * 5000, IDAT, END), "the file has more than 4096 parts"),
        (WEBP[:20], "the WebP is truncated: it has 20 bytes"),
        (WEBP[:40], "the WEBP file cannot be decoded"),
        (WEBP[:12] + b"JUNK" + WEBP[16:], "the WebP begins with b'JUNK'"),
        (WEBP[:20] + b"?" + WEBP[21:], "the WebP begins with b'VP8L'"),
        (vp8x(8, 6), "the WEBP file cannot be decoded"),
        (vp8x(1, 1, 0, WEBP[12:]), "the WEBP file cannot be decoded"),
        (vp8x(8, 6, 8, bytes(8) * 5000), "the file has more than 4096 parts"),
    ],
)
def test_bad_files(body: bytes, words: str) -> None:
    """Checklist 36."""
    assert words in refusal(body).message


def test_more_of_the_same_header_changes_nothing() -> None:
    """Checklist 84: the size that is checked is the one that is decoded."""
    huge = chunk(b"IHDR", struct.pack(">2I5B", 2**30, 2**30, 8, 2, 0, 0, 0))
    assert_same(read(png(8, 6, huge, IDAT, END)), np.zeros((1, 6, 8, 3), np.uint8))


def test_missing_rows_are_black() -> None:
    """As in browsers, and never what the memory held before."""
    white = chunk(b"IDAT", zlib.compress((b"\0" + b"\xff" * 24) * 2))
    record = read(png(8, 6, white, END))[0]
    assert (record[:2] == 255).all()
    assert (record[2:] == 0).all()


@pytest.mark.parametrize(
    ("body", "most"),
    [
        (png(100_000, 100_000, IDAT, END), "67108864"),
        (png(2**31, 2**31, IDAT, END), "67108864"),
        (JPEG.replace(SOF, SOF[:5] + b"\xff\xff\xff\xff" + SOF[9:]), "67108864"),
        (vp8x(2**24, 2**24, 0, WEBP[12:]), "33554432"),
        (WEBP[:21] + b"\xff\xff\xff\x0f" + WEBP[25:], "33554432"),
    ],
)
def test_bombs(body: bytes, most: str) -> None:
    """Checklist 84: the header is enough to refuse them."""
    tracemalloc.start()
    try:
        error = refusal(body)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
    assert type(error) is TensorsTooLarge
    assert f"is too large: at most {most} pixels, and 65535 a side, are decoded" in error.message


def test_limit() -> None:
    """What decoding takes counts, and the record that comes of it."""
    assert "is too large" in refusal(PNG, options=DecodeOptions({}, max_tensor_bytes=8 * 48 - 1)).message
    codec.decode(PNG, PIXELS, DecodeOptions({}, max_tensor_bytes=8 * 48))
    doubles, record_bytes = taking_images(RAW, (None, 6, 8, 3), "float64"), 3 * 48 * 8
    assert "a record of input" in refusal(PNG, doubles, DecodeOptions({}, max_tensor_bytes=record_bytes - 1)).message
    codec.decode(PNG, doubles, DecodeOptions({}, max_tensor_bytes=record_bytes))


def test_a_turned_image_counts_for_a_third_copy() -> None:
    file = saved(picture(8, 6), "PNG", exif=tiff(6))
    assert "is too large" in refusal(file, options=DecodeOptions({}, max_tensor_bytes=12 * 48 - 1)).message


@pytest.mark.parametrize("size", [(65536, 1), (1, 65536)])
def test_a_side_beyond_all_measure(size: tuple[int, int]) -> None:
    """Resizing it would hold up every other thread, for seconds where it is a thousand times as long."""
    error = refusal(png(*size, IDAT, END))
    assert type(error) is TensorsTooLarge
    assert "65535 a side" in error.message


def test_texts_and_profiles_are_not_inflated() -> None:
    """Checklist 84: a thousand times a megabyte of zeros."""
    zeros = zlib.compress(bytes(1_000_000))
    parts = [chunk(b"zTXt", b"a\0\0" + zeros), chunk(b"iCCP", b"a\0\0" + zeros), chunk(b"iTXt", b"a\0\1\0\0\0" + zeros)]
    body = png(8, 6, *parts * 300, IDAT, *parts, END)
    tracemalloc.start()
    try:
        assert_same(read(body), np.zeros((1, 6, 8, 3), np.uint8))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_parts_that_make_no_pixels() -> None:
    """Bytes between segments, markers without length, comments: a decoder does not see them."""
    parts = b"junk\xff\xff\xff" + jpeg_segment(0xFE, b"note")[1:] + b"\xff\x01\xff\xd0" + jpeg_segment(0xEF, bytes(99))
    body = JPEG[:20] + parts + JPEG[20:]  # behind the first segment
    assert_same(read(body), read(JPEG))
    assert read_header(body, "body").data == read_header(JPEG, "body").data


def test_scans() -> None:
    """Checklist 84: each scan takes a few bytes and goes over all pixels."""
    progressive = saved(picture(8, 6), "JPEG", progressive=True)
    assert_same(read(progressive), plain(progressive)[np.newaxis])
    first = progressive.index(b"\xff\xda")
    end = first + 2 + int.from_bytes(progressive[first + 2 : first + 4], "big")
    again = progressive[first:end] + b"\xff\x00\xff\xd0"
    assert "the JPEG has more than 50 scans" in refusal(progressive[:first] + again * 51).message
    comments = jpeg_segment(0xFE, b"\xff\xda" * 200)
    assert_same(read(progressive[:first] + progressive[first:-2] + comments + b"\xff\xd9"), read(progressive))
    assert "more than 4096 parts" in refusal(progressive[:-2] + comments * 5000).message


# Laws

FILES = [JPEG, PNG, WEBP, saved(picture(8, 6), "JPEG", progressive=True), saved(picture(8, 6), "WEBP")]
FILES += [saved(picture(8, 6, "P"), "PNG"), saved(picture(8, 6, "CMYK"), "JPEG"), with_exif(JPEG, tiff(6))]
FILES += [saved(picture(8, 6), kind, save_all=True, append_images=[picture(8, 6)]) for kind in ("PNG", "WEBP")]
TAKING = [
    PIXELS,
    taking_images(ImageSpec(4, 4, "BGR", resize=Resize.CROP, shrink_on_load=True), (None, 3, 4, 4), "float16"),
    taking_images(ImageSpec(4, 4, "L", Layout.HW, resize=Resize.PAD), (4, 4), "int64", ABSENT),
]


@LAWS
@given(st.sampled_from([b"", b"\xff\xd8\xff", PNG[:33], WEBP[:16]]), st.binary(max_size=200), st.sampled_from(TAKING))
def test_any_body_gives_tensors_or_a_refusal(magic: bytes, rest: bytes, signature: Signature) -> None:
    """Checklist 36 and 41."""
    assert_tensors_or_refusal(ENTRY, magic + rest, signature, OPTIONS)


def test_damaged_files() -> None:
    @LAWS
    @given(st.data())
    def law(data: st.DataObject) -> None:
        body = bytearray(data.draw(st.sampled_from(FILES)))
        for _ in range(data.draw(st.integers(1, 4))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, 9))
        options = DecodeOptions({}, max_tensor_bytes=100_000)
        body = body[: len(body) - cut]
        assert_tensors_or_refusal(ENTRY, bytes(body), data.draw(st.sampled_from(TAKING)), options)

    law()


@pytest.mark.parametrize("body", FILES, ids=range(len(FILES)))
def test_every_place_cut_off(body: bytes) -> None:
    """Checklist 36: no part of a file passes for the file, but a JPEG or WebP may lack what makes no pixels."""
    for end in range(0, len(body), max(1, len(body) // 40)):
        assert_tensors_or_refusal(ENTRY, body[:end], PIXELS, OPTIONS)
