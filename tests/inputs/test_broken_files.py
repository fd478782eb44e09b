"""Pillow's and libjpeg-turbo's own broken and odd files: each decodes or is refused in words, in every form."""

import csv
import io
import os

import numpy as np
import pytest
from PIL import Image

from sktl.exceptions import InputWarning
from sktl.inputs import RowError, open_rows

# What is refused, and why; all other files decode.
REFUSED = {
    "avif__rot1mir0.avif": "AVIF is not read; formats read are JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM",
    "bmp__b__reallybig.bmp": "too large: ",
    "broken.png": "broken PNG file: its header cannot be read",
    "combined_larger_than_size.psd": "PSD is not read; ",
    "crash-754d9c7ec485ffb76a90eeaab191ef69a2a3a3cd.sgi": "SGI is not read; ",
    "crash-86214e58da443d2b80820cff9677a38a33dcbbca.tif": "broken TIFF file: ",
    "decompression_bomb.gif": "too large: ",
    "decompression_bomb.ico": "ICO is not read; ",
    "dummy.container": "not an image file of a known format; ",
    "hopper.dds": "DDS is not read; ",
    "oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif": "broken TIFF file: its header cannot be read",
    "ossfuzz-4836216264589312.pcx": "not an image file of a known format; ",
    "p_8.tga": "not an image file of a known format; ",
    "png_decompression_dos.png": "broken PNG file: Decompressed data too large",
    "rgb_trns_ycbc.jp2": "JPEG 2000 is not read; ",
    "seek_too_large.tif": "broken TIFF file: ",
    "truncated_end_chunk.png": "truncated PNG file: it ends after 30,339 bytes",
    "truncated_jpeg.jpg": "truncated JPEG file: it ends after 6,698 bytes",
    "unknown_compression_method.png": "broken PNG file: its header cannot be read",
    "unknown_mode.j2k": "JPEG 2000 is not read; ",
}
SEVERAL_FRAMES = {
    "apng__chunk_no_fdat.png",
    "apng__mode_grayscale_alpha.png",
    "background_outside_palette.gif",
    "dispose_bgnd.gif",
    "frame_size.mpo",
    "multipage.tiff",
    "no_palette.gif",
    "test_extents.gif",
    "total-pages-zero.tif",
    "transparent_dispose.gif",
}

# Pillow warns of odd metadata, as it should; what is decoded does not depend on it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture(scope="module")
def broken(shared_data):
    folder = shared_data / "broken"
    if not folder.is_dir():
        pytest.skip(f"no broken files at {folder}")
    return folder


def list_files(folder):
    with open(folder / "LIST.tsv", newline="") as table:
        return [row["file"] for row in csv.DictReader(table, delimiter="\t")]


def outcome(item):
    """Pixels of a row, or the reason why there are none; all else is raised."""
    try:
        return open_rows([item])[0].pixels()
    except RowError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore::sktl.exceptions.InputWarning")
def test_every_file_in_every_form(broken):
    files = list_files(broken)
    assert set(REFUSED) | SEVERAL_FRAMES <= set(files)
    for name in files:
        path = broken / name
        with open(path, "rb") as stream:
            found = [outcome(item) for item in (path, str(path), path.read_bytes(), stream)]
        if name in REFUSED:
            assert set(found) == {found[0]}, name
            assert found[0].startswith(REFUSED[name]), (name, found[0])
        else:
            assert all(isinstance(pixels, np.ndarray) for pixels in found), (name, found[0])
            assert all(np.array_equal(pixels, found[0]) for pixels in found), name
            assert found[0].dtype == np.uint8
            assert found[0].ndim == 3
            assert found[0].flags.c_contiguous


@pytest.mark.filterwarnings("error")
def test_even_with_every_warning_an_error(broken):
    for name in list_files(broken):
        try:
            outcome(broken / name)
        except InputWarning:
            assert name in SEVERAL_FRAMES


@pytest.mark.filterwarnings("ignore::sktl.exceptions.InputWarning")
def test_pillow_images_give_the_same_pixels(broken):
    for name in list_files(broken):
        if name not in REFUSED:
            with Image.open(broken / name) as image:
                np.testing.assert_array_equal(outcome(image), outcome(broken / name), err_msg=name)


@pytest.mark.parametrize("name", sorted(SEVERAL_FRAMES))
def test_several_frames_warn(broken, name):
    with pytest.warns(InputWarning, match=rf"row 0 \('.*{name}'\) holds several frames"):
        outcome(broken / name)


def read(folder, name):
    return outcome(folder / name).astype(int)


def test_orientation(broken):
    with Image.open(broken / "hopper.bmp") as image:
        upright = np.asarray(image.convert("RGB")).astype(int)
    names = [f"hopper_orientation_{number}.jpg" for number in (2, 4, 6, 8)]
    for name in [*names, "hopper_orientation_6.webp"]:
        pixels = read(broken, name)
        assert np.abs(pixels - upright).mean() < 5
        assert np.abs(pixels[::-1] - upright).mean() > 30


def test_16_bits_are_scaled(broken):
    upright = read(broken, "hopper.bmp").mean(axis=2)
    deep = read(broken, "hopper_16bit.pgm")[..., 0]
    assert np.abs(deep - upright).mean() < 10
    assert read(broken, "monkey16.png").std() > 20
    for name in ("16_bit_noise.tif", "16bit.cropped.tif"):  # their values end at 285 and 694 of 65535
        with Image.open(broken / name) as image:
            np.testing.assert_array_equal(read(broken, name)[..., 0], np.rint(np.asarray(image) / 257))


def test_transparency_is_white(broken):
    for name in ("transparent.webp", "p_16.png", "tiff_wrong_bits_per_sample.tiff", "i_trns.png", "1_trns.png"):
        with Image.open(broken / name) as image:
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
        clear = read(broken, name)[alpha == 0]
        assert (clear == 255).all()
    assert (read(broken, "tRNS_null_1x1.png") == 255).all()


def test_colour_spaces(broken):
    red = read(broken, "pil_sample_cmyk.jpg")
    assert tuple(red[0, 0]) == pytest.approx((255, 0, 0), abs=40)
    assert tuple(red[-1, -1]) == pytest.approx((0, 0, 0), abs=20)
    assert np.abs(read(broken, "hopper.Lab.tif") - read(broken, "hopper.bmp")).mean() < 3
    assert np.abs(read(broken, "hopper_lzw.tif") - read(broken, "hopper.bmp")).mean() < 3


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX links")
def test_names_say_nothing(broken, tmp_path):
    """What a file is called does not matter, only what it holds."""
    (tmp_path / "a.png").symlink_to(broken / "hopper_orientation_6.jpg")
    (tmp_path / "b.jpg").symlink_to(broken / "hopper.dds")
    np.testing.assert_array_equal(read(tmp_path, "a.png"), read(broken, "hopper_orientation_6.jpg"))
    assert outcome(tmp_path / "b.jpg").startswith("DDS is not read")


def test_digest_is_of_the_content(broken):
    path = broken / "hopper_orientation_6.jpg"
    forms = [
        path,
        str(path),
        path.read_bytes(),
        io.BytesIO(path.read_bytes()),
        {"bytes": path.read_bytes(), "path": None},
    ]
    assert len({row.digest for row in open_rows(forms)}) == 1
