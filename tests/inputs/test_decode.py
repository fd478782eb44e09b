"""What becomes of a picture, whatever its encoding: depth, colour, transparency, orientation, frames, size."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from sktl.exceptions import InputWarning
from sktl.inputs import RowError, open_rows

RNG = np.random.default_rng(0)
RGB = Image.fromarray(RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8))


def encode(image, name, **options):
    stream = io.BytesIO()
    image.copy().save(stream, name, **options)
    return stream.getvalue()


def read(item, **options):
    return open_rows([item], **options)[0].pixels()


def reason(item, **options):
    with pytest.raises(RowError) as error:
        read(item, **options)
    return str(error.value)


def make_png(width, height, depth, colour, rows=b"", chunks=()):
    """Write a PNG file by hand, for what Pillow cannot write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


@pytest.mark.parametrize("name", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
def test_lossless_formats(name, mode):
    image = RGB.quantize(16) if mode == "P" else RGB.convert(mode)
    try:
        data = encode(image, name, **({"lossless": True} if name == "WEBP" else {}))
    except OSError:
        pytest.skip(f"{name} has no mode {mode}")
    with Image.open(io.BytesIO(data)) as decoded:
        expected = np.asarray(decoded.convert("RGB"))
    pixels = read(data)
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(read(Image.open(io.BytesIO(data))), pixels)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


def test_jpeg_colour_spaces():
    for mode in ("RGB", "L", "CMYK"):
        data = encode(RGB.convert(mode), "JPEG", quality=100)
        with Image.open(io.BytesIO(data)) as decoded:
            np.testing.assert_array_equal(read(data), np.asarray(decoded.convert("RGB")))
    assert (
        np.abs(read(encode(Image.new("RGB", (8, 8), "red").convert("CMYK"), "JPEG")).astype(int) - (255, 0, 0)).max()
        < 12
    )


@pytest.mark.parametrize("name", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(name):
    values = np.array([[0, 256, 257, 1000, 32768, 65535]], dtype=np.uint16)
    pixels = read(encode(Image.fromarray(values), name))
    np.testing.assert_array_equal(pixels[..., 0], [[0, 1, 1, 4, 128, 255]])
    np.testing.assert_array_equal(pixels, read(values))
    np.testing.assert_array_equal(pixels, read(Image.fromarray(values)))
    np.testing.assert_array_equal(pixels, read(Image.open(io.BytesIO(encode(Image.fromarray(values), name)))))


def test_16_bit_big_endian_tiff():
    values = np.array([[0, 1000, 65535]], dtype=">u2")
    entries = [(256, 3, 1, 3 << 16), (257, 3, 1, 1 << 16), (258, 3, 1, 16 << 16), (259, 3, 1, 1 << 16)]
    entries += [(262, 3, 1, 1 << 16), (273, 4, 1, 122), (277, 3, 1, 1 << 16), (278, 3, 1, 1 << 16), (279, 4, 1, 6)]
    directory = struct.pack(">H", len(entries)) + b"".join(struct.pack(">HHII", *entry) for entry in entries)
    data = b"MM\0*" + struct.pack(">I", 8) + directory + struct.pack(">I", 0)
    data += values.tobytes()
    np.testing.assert_array_equal(read(data)[..., 0], [[0, 4, 255]])


def test_16_bit_colour_png():
    values = np.array([[[0, 32768, 65535], [257, 514, 65280]]], dtype=">u2")
    data = make_png(2, 1, 16, 2, b"\0" + values.tobytes())
    np.testing.assert_array_equal(read(data), [[[0, 128, 255], [1, 2, 255]]])


def test_floats_and_32_bit_integers():
    np.testing.assert_array_equal(
        read(encode(Image.fromarray(np.float32([[0, 0.5, 1]])), "TIFF"))[..., 0], [[0, 128, 255]]
    )
    np.testing.assert_array_equal(read(Image.fromarray(np.float32([[0, 0.5, 1]])))[..., 0], [[0, 128, 255]])
    np.testing.assert_array_equal(read(encode(Image.fromarray(np.int32([[0, 9, 255]])), "TIFF"))[..., 0], [[0, 9, 255]])
    assert "must lie in [0, 1], these range from 0 to 200" in reason(
        encode(Image.fromarray(np.float32([[0, 200]])), "TIFF")
    )
    assert "within 0..255, these range from 0 to 70000" in reason(
        encode(Image.fromarray(np.int32([[0, 70000]])), "TIFF")
    )
    assert "NaN" in reason(Image.fromarray(np.float32([[0, np.nan]])))


def test_lab():
    pixels = read(encode(Image.new("RGB", (8, 8), (200, 30, 60)).convert("LAB"), "TIFF"))
    assert np.abs(pixels.astype(int) - (200, 30, 60)).max() <= 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_alpha_becomes_white(mode):
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 100))
    image = (image.convert("LA") if mode == "La" else image).convert(mode)
    pixels = read(image)[0]
    np.testing.assert_array_equal(pixels[:2], [[0, 0, 0], [255, 255, 255]])
    assert np.ptp(pixels[2]) == 0
    assert abs(int(pixels[2, 0]) - 155) <= 2
    for name in ("PNG", "TIFF", "WEBP"):
        if mode in ("RGBA", "LA"):
            found = read(encode(image, name, **({"lossless": True, "exact": True} if name == "WEBP" else {})))
            np.testing.assert_array_equal(found[0], pixels)


@pytest.mark.parametrize(
    ("mode", "values", "key"),
    [
        ("L", [[7, 9]], 7),
        ("RGB", [[(1, 2, 3), (3, 2, 1)]], (1, 2, 3)),
        ("1", [[0, 255]], 0),
        ("I;16", [[1000, 2000]], 1000),
    ],
)
def test_a_transparent_colour_becomes_white(mode, values, key):
    dtype = np.uint16 if mode == "I;16" else np.uint8
    image = Image.fromarray(np.array(values, dtype=dtype))
    image = image.convert("1") if mode == "1" else image
    opaque = read(encode(image, "PNG"))
    pixels = read(encode(image, "PNG", transparency=key))
    np.testing.assert_array_equal(pixels[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(pixels[0, 1], opaque[0, 1])


def test_a_transparent_colour_of_16_bits():
    values = np.array([[[0x8001] * 3, [0xFFFF] * 3, [0] * 3]], dtype=">u2")
    data = make_png(3, 1, 16, 2, b"\0" + values.tobytes(), [(b"tRNS", struct.pack(">HHH", 0x8001, 0x8001, 0x8001))])
    np.testing.assert_array_equal(read(data)[0, :, 0], [255, 255, 0])


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 100])])
def test_transparent_palette_entries(transparency):
    image = Image.fromarray(np.uint8([[0, 1]]))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    data = encode(image, "PNG", transparency=transparency)
    np.testing.assert_array_equal(read(data), [[[10, 20, 30], [255, 255, 255]]])
    np.testing.assert_array_equal(read(Image.open(io.BytesIO(data))), read(data))


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(name, orientation):
    corners = Image.new("RGB", (32, 16), "red")
    corners.paste("lime", (0, 0, 16, 8))
    corners.paste("blue", (16, 0, 32, 8))
    undo = {
        2: 0,
        3: 3,
        4: 1,
        5: 5,
        6: 2,
        7: 6,
        8: 4,
    }  # Image.Transpose that turns the upright picture into the stored one
    stored = corners.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else corners
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if name == "JPEG" else {"lossless": True} if name == "WEBP" else {}
    data = encode(stored, name, exif=exif, **options)
    for form in (data, Image.open(io.BytesIO(data))):
        assert read(form).shape == (16, 32, 3)
        assert np.abs(read(form).astype(int) - np.asarray(corners)).max() <= 4


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_bad_exif_counts_as_upright(exif):
    assert read(encode(RGB, "JPEG", exif=exif)).shape == (6, 9, 3)
    assert read(encode(RGB, "PNG", exif=exif)).shape == (6, 9, 3)


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_of_several_frames(name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {} if name in ("MPO", "TIFF") else {"duration": 50}
    data = encode(frames[0], name, save_all=True, append_images=frames[1:], **options)
    rows = open_rows([data, data, data])
    with pytest.warns(InputWarning, match=r"row 1 holds several frames or pages; the first is used") as caught:
        pixels = rows[1].pixels()
    assert len(caught) == 1
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() < 8
    rows[0].pixels(), rows.take([2])[0].pixels()  # said once
    with pytest.warns(InputWarning, match="row 0"):
        open_rows([data])[0].pixels()


def test_a_single_frame_is_nothing_to_warn_of():
    for name in ("GIF", "TIFF", "WEBP"):
        read(encode(RGB, name, save_all=True))


def test_the_current_frame_of_a_pillow_image():
    data = encode(Image.new("L", (4, 4), 10), "TIFF", save_all=True, append_images=[Image.new("L", (4, 4), 20)])
    image = Image.open(io.BytesIO(data))
    assert (read(image) == 10).all()
    image.seek(1)
    assert (read(image) == 20).all()
    assert image.tell() == 1


def test_size_is_judged_before_decoding():
    data = make_png(20_000, 4_000, 8, 2)  # no pixels behind the header
    assert reason(data, max_pixels=10**6) == "too large: 20000 x 4000 = 80,000,000 pixels, where max_pixels=1,000,000"
    assert "broken" in reason(data) or "truncated" in reason(data)
    assert read(encode(RGB, "PNG"), max_pixels=54).shape == (6, 9, 3)
    assert "9 x 6 = 54 pixels" in reason(encode(RGB, "PNG"), max_pixels=53)
    assert "9 x 6 = 54 pixels" in reason(RGB, max_pixels=53)


@pytest.mark.parametrize("max_pixels", [2**28 // 3, 10**9])
def test_bombs(max_pixels):
    said = reason(make_png(20_000, 20_000, 8, 2), max_pixels=max_pixels)
    assert "Image size (400000000 pixels) exceeds limit" in said
    assert ("which max_pixels does not lift" in said) == (max_pixels > 2**28 // 3)
    assert "exceeds limit" in reason(make_png(10_000, 10_000, 8, 2))  # Pillow only warns here, and warnings are errors


@pytest.mark.parametrize("max_pixels", [0, -1, 2.5, None, "many"])
def test_max_pixels_must_be_a_number(max_pixels):
    with pytest.raises(ValueError, match="'max_pixels' parameter must be an int above 0"):
        open_rows([RGB], max_pixels=max_pixels)


def test_global_state_is_left_alone():
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    read(encode(RGB, "JPEG"), max_pixels=10**9)
    reason(encode(RGB, "JPEG")[:-30])
    reason(make_png(20_000, 20_000, 8, 2), max_pixels=10**9)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_truncated_files_say_how_far_they_go(name):
    image = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(image, name)
    said = reason(data[: len(data) // 2])
    assert name in said
    if name in ("JPEG", "PNG", "BMP"):
        assert said == f"truncated {name} file: it ends after {len(data) // 2:,} bytes"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0\0\0\x1cftypavif", "AVIF is not read"),
        (b"\0\0\0\x1cftypheic", "HEIC is not read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "SVG is not read"),
        (b"\n <!DOCTYPE html><html></html>", "HTML is not read"),
        (b"%PDF-1.7", "PDF is not read"),
        (b"just text", "not an image file of a known format"),
        (b"\0" * 100, "not an image file of a known format"),
    ],
)
def test_other_formats_are_refused_by_name(data, said):
    assert reason(data) == f"{said}; formats read are JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM"


@pytest.mark.parametrize("name", ["ICO", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "AVIF"])
def test_formats_that_pillow_reads_and_we_do_not(name):
    try:
        data = encode(RGB.resize((16, 16)), name)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {name}")
    assert reason(data).endswith("formats read are JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM")


def test_a_closed_or_broken_pillow_image():
    assert "a Pillow image that cannot be loaded" in reason(Image.open(io.BytesIO(encode(RGB, "PNG")[:-30])))
    image = Image.open(io.BytesIO(encode(RGB, "PNG")))
    image.close()
    assert "a Pillow image that cannot be loaded" in reason(image)


def test_a_pillow_image_is_not_changed():
    for image in (RGB.convert("RGBA"), RGB.quantize(4), RGB.copy()):
        image.info["transparency"] = (300, 0, 0) if image.mode == "RGB" else 1
        before = image.mode, image.size, dict(image.info), image.tobytes()
        read(image)
        assert before == (image.mode, image.size, dict(image.info), image.tobytes())


def test_memory_errors_are_said(monkeypatch):
    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert reason(encode(RGB, "BMP")) == "not enough memory to decode this BMP file"
