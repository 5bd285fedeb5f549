"""Pictures of every mode enter a cache as numpy says they should, or not at all."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from sklearn.datasets import load_sample_image

from gsnr.train.prepare import images
from gsnr.train.prepare.images import centre_crop
from gsnr.train.prepare.modes import rgb
from gsnr.train.prepare.sources import open_source

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (32, 32, 1), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (32, 32), dtype=np.uint16)
UNIT = RNG.random((32, 32), dtype=np.float32)


def stored(image: Image.Image, form: str, **options: object) -> Image.Image:
    """Written to a file of this form and opened again."""
    data = io.BytesIO()
    image.save(data, format=form, **options)
    return Image.open(data)


def grey(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint8)[:, :, None].repeat(3, axis=2)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    a = alpha.astype(np.float64) / 255
    return np.floor(colour * a + 255 * (1 - a) + 0.5).astype(np.uint8)


def png(depth: int, colour_type: int, rows: np.ndarray) -> Image.Image:
    """A PNG of big-endian samples, which Pillow reads and does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, colour_type, 0, 0, 0)
    body = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")))


def tiff(values: np.ndarray, white_is_zero: bool = False, order: str = "<") -> Image.Image:
    """A one-strip TIFF of integers or floats, which Pillow writes in its own order only. values: (H,W) or (H,W,3)."""
    h, w = values.shape[:2]
    samples, bits = (1 if values.ndim == 2 else 3), values.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    after = 8 + len(data)
    three = struct.pack(f"{order}6H", *[bits] * 3, *[kind] * 3) if samples == 3 else b""  # which do not fit in an entry
    meaning = 0 if white_is_zero else 2 if three else 1
    short = [(258, after if three else bits), (259, 1), (262, meaning), (277, samples), (339, after + 6 if three else kind)]
    fields = sorted([*short, (256, w), (257, h), (273, 8), (278, h), (279, len(data))])
    body = b""
    for tag, value in fields:
        many = samples if tag in (258, 339) else 1
        body += struct.pack(f"{order}HHI", tag, 3 if tag in dict(short) else 4, many)
        body += struct.pack(f"{order}H2x" if tag in dict(short) and many == 1 else f"{order}I", value)
    directory = struct.pack(f"{order}H", len(fields)) + body + struct.pack(f"{order}I", 0)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, after + len(three))
    return Image.open(io.BytesIO(head + data + three + directory))


COLOUR_DEEP = RNG.integers(0, 65536, (32, 32, 3), dtype=np.uint16)
FOUR_DEEP = RNG.integers(0, 65536, (32, 32, 4), dtype=np.uint16)
INK = RNG.integers(0, 256, (32, 32, 4), dtype=np.uint8)
CASES = {
    "16-bit grey PNG": (lambda: stored(Image.fromarray(DEEP), "PNG"), grey(DEEP // 256)),
    "16-bit colour PNG": (lambda: png(16, 2, COLOUR_DEEP), (COLOUR_DEEP // 256).astype(np.uint8)),
    "16-bit PNG with alpha": (lambda: png(16, 6, FOUR_DEEP), over_white(FOUR_DEEP[..., :3] // 256, FOUR_DEEP[..., 3:] // 256)),
    "16-bit grey TIFF": (lambda: stored(Image.fromarray(DEEP), "TIFF"), grey(DEEP // 256)),
    "16-bit grey TIFF, big-endian": (lambda: tiff(DEEP, order=">"), grey(DEEP // 256)),
    "16-bit grey TIFF, white is 0": (lambda: tiff(DEEP, white_is_zero=True), grey(255 - DEEP // 256)),
    "16-bit colour TIFF": (lambda: tiff(COLOUR_DEEP), (COLOUR_DEEP // 256).astype(np.uint8)),
    "32-bit integers of 16 bits": (lambda: stored(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), grey(DEEP // 256)),
    "float TIFF": (lambda: stored(Image.fromarray(UNIT), "TIFF"), grey(np.rint(UNIT * np.float32(255)))),
    "RGBA": (lambda: stored(Image.fromarray(np.concatenate([COLOUR, ALPHA], 2)), "PNG"), over_white(COLOUR, ALPHA)),
    "LA": (lambda: stored(Image.fromarray(np.concatenate([COLOUR[..., :1], ALPHA], 2)), "PNG"), over_white(COLOUR[..., :1].repeat(3, 2), ALPHA)),
    "a transparent colour": (
        lambda: stored(Image.fromarray(COLOUR), "PNG", transparency=tuple(COLOUR[0, 0].tolist())),
        np.where((COLOUR[0, 0] == COLOUR).all(-1, keepdims=True), 255, COLOUR).astype(np.uint8),
    ),
    "CMYK TIFF": (
        lambda: stored(Image.fromarray(INK, "CMYK"), "TIFF"),
        np.clip(255 - INK[..., 3:].astype(int) - np.rint(INK[..., :3] * (255.0 - INK[..., 3:]) / 255), 0, 255).astype(np.uint8),
    ),
    "1 bit": (lambda: stored(Image.fromarray(COLOUR[..., 0] > 99), "PNG"), grey((COLOUR[..., 0] > 99) * 255)),
}


@pytest.mark.parametrize("name", CASES)
def test_pixels(name: str) -> None:
    """A picture of the right size comes through the crop untouched, so that this is the rule for its mode alone."""
    made, expected = CASES[name]
    np.testing.assert_array_equal(centre_crop(made(), 32), expected)


def test_palette_with_transparency() -> None:
    """One entry is transparent, one half so."""
    index = RNG.integers(0, 4, (32, 32), dtype=np.uint8)
    palette, alpha = RNG.integers(0, 256, (4, 3), dtype=np.uint8), np.array([255, 0, 128, 255], np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(centre_crop(stored(image, "PNG"), 32), palette[index])
    made = stored(image, "PNG", transparency=alpha.tobytes())
    np.testing.assert_array_equal(centre_crop(made, 32), over_white(palette[index], alpha[index][..., None]))


def test_cmyk_jpeg() -> None:
    """A flat one, which JPEG keeps to a level or two."""
    ink = np.broadcast_to(np.array([200, 30, 90, 40], np.uint8), (32, 32, 4))
    expected = (255 - ink[0, 0, :3].astype(float)) * (255 - 40) / 255
    assert np.abs(centre_crop(stored(Image.fromarray(ink, "CMYK"), "JPEG", quality=100), 32) - expected).max() <= 3


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, -1), (8, 1)])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation(orientation: int, turn: int, form: str) -> None:
    """Against np.rot90, in pictures that are not square; the plain one is decoded beside it."""
    wide = np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((48, 32)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    plain, turned = stored(Image.fromarray(wide), form), stored(Image.fromarray(wide), form, exif=exif)
    np.testing.assert_array_equal(np.asarray(rgb(turned)), np.rot90(np.asarray(plain.convert("RGB")), turn))
    if form != "JPEG":
        deep = stored(Image.fromarray(wide[..., 0].astype(np.uint16) * 256), form, exif=exif)
        np.testing.assert_array_equal(np.asarray(rgb(deep)), grey(np.rot90(wide[..., 0], turn)))


REFUSED = {
    "floats of 8 bits": (UNIT * 255, "floats from .* only those of .0, 1. are read"),
    "floats below 0": (UNIT - 0.5, "floats from -0"),
    "floats that are not finite": (np.where(UNIT > 0.9, np.float32("nan"), UNIT), "floats from nan to nan"),
    "8 bits in 16": (DEEP % 256, "16 bits a pixel, but none above 255"),
    "negative integers": (DEEP.astype(np.int32) - 30000, "integers from -"),
    "integers of 32 bits": (DEEP.astype(np.int32) * 300, "only those of 8 and 16 bits are read"),
    "signed 16 bits": ((DEEP // 2).astype(np.int16), "16 bits a pixel, signed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_range_is_refused(name: str) -> None:
    values, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        centre_crop(tiff(values), 32)


def test_a_refused_picture_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(UNIT * 255).save(tmp_path / "cat" / "a.tif")
    Image.fromarray(COLOUR).save(tmp_path / "cat" / "b.png")
    source, _ = open_source(str(tmp_path))
    (read,) = images.loader(source, 32, [np.array([0, 1])], 0)
    assert read.numbers.tolist() == [1] and len(read.bad) == 1
    assert read.bad[0].startswith(f"{tmp_path}/cat/a.tif: not a readable image (floats from ") and "\n" not in read.bad[0]


def test_a_picture_of_too_many_pixels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over Pillow's limit it is read, without a warning; over twice the limit it is refused, in one line."""
    (tmp_path / "cat").mkdir()
    for name, side in (("a", 40), ("b", 60)):
        Image.new("RGB", (side, side)).save(tmp_path / "cat" / f"{name}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (read,) = images.loader(open_source(str(tmp_path))[0], 32, [np.array([0, 1])], 0)
    assert read.numbers.tolist() == [0] and len(read.bad) == 1
    assert "b.png: not a readable image (Image size (3600 pixels) exceeds limit of 2000 pixels" in read.bad[0]


@pytest.mark.parametrize("size", [(1, 40000), (40000, 1), (70, 40000)])
def test_a_long_picture_takes_little_memory(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, to, *more, **named: sizes.append(to) or original(self, to, *more, **named))
    grown = np.linspace(0, 255, max(size)).astype(np.uint8).reshape(size[::-1] if 1 in size else (-1, 1))
    image = Image.fromarray(np.broadcast_to(grown, size[::-1]).copy())
    assert centre_crop(image, 32).shape == (32, 32, 3)
    assert max(w * h for w, h in sizes) <= max(32 * 32 * images.LONGEST, image.width * image.height)


def test_the_centre_of_a_long_picture_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of a photograph, resized as a whole (as ADM does) and by the centre alone: Pillow takes the passes in another order, and rounds
    and clips between them."""
    photo = Image.fromarray(load_sample_image("china.jpg"))
    for box in ((0, 100, 640, 131), (0, 200, 640, 207), (300, 0, 320, 427), (300, 0, 301, 427)):
        long = centre_crop(photo.crop(box), 64)
        with monkeypatch.context() as patch:
            patch.setattr(images, "LONGEST", 10**9)
            whole = centre_crop(photo.crop(box), 64)
        apart = np.abs(long.astype(int) - whole)
        assert apart.mean() < 0.5 and apart.max() <= 8  # where the first pass is clipped


def test_ordinary_pictures_are_cropped_as_by_adm() -> None:
    """Bit for bit, against ADM's own lines."""

    def adm(image: Image.Image, side: int) -> np.ndarray:
        while min(*image.size) >= 2 * side:
            image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
        scale = side / min(*image.size)
        image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.BICUBIC)
        arr = np.array(image)
        y, x = (arr.shape[0] - side) // 2, (arr.shape[1] - side) // 2
        return arr[y : y + side, x : x + side]

    photo = Image.fromarray(load_sample_image("flower.jpg"))
    for w, h in ((640, 427), (300, 300), (31, 200), (427, 100), (500, 40)):
        np.testing.assert_array_equal(centre_crop(photo.resize((w, h)), 64), adm(photo.resize((w, h)), 64))
