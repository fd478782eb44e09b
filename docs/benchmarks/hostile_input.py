"""What do damaged image files do to sktl's decoder?

Valid JPEG, PNG, GIF, BMP, TIFF, WebP and PPM files are built, damaged by a seeded generator, and decoded one by one in
a second process, which is watched: a file that takes too long counts as a hang, one that ends the process as a crash.
Every file should either decode or raise the documented error, ``sktl.inputs.RowError``::

    python docs/benchmarks/hostile_input.py --files 10000

The exit status is 1 if anything else happened; the seed and number of each such file are printed.
"""

import argparse
import collections
import io
import multiprocessing
import os
import sys
import time
import warnings
import zlib

import numpy as np
from PIL import Image

EXPECTED = ("decoded", "documented error")


def build_seeds():
    """Encode a small picture in every way that Pillow can write and sktl reads, as a dict of name to bytes."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40, 56, 4), dtype=np.uint8)
    noise[5:30, 5:40] = (200, 30, 90, 255)
    rgba = Image.fromarray(noise)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    palette, deep = rgb.quantize(32), Image.fromarray(rng.integers(0, 2**16, (40, 56), dtype=np.uint16))
    fractions = Image.fromarray(np.asarray(grey, dtype=np.float32) / 255)
    exif = Image.Exif()
    exif[0x0112] = 6

    def frames():
        return {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}

    variants = [
        ("JPEG", rgb, {"exif": exif}), ("JPEG", rgb, {"progressive": True}), ("JPEG", rgb.convert("CMYK"), {}),
        ("JPEG", rgb, {"restart_marker_blocks": 2}), ("JPEG", grey, {}), ("MPO", rgb, frames()),
        ("PNG", rgb, {"exif": exif}), ("PNG", rgba, {}), ("PNG", palette, {"transparency": 3}), ("PNG", deep, {}),
        ("PNG", grey.convert("1"), {}), ("PNG", rgb, frames()),
        ("GIF", palette, {"transparency": 1}), ("GIF", rgb, frames()),
        ("BMP", rgb, {}), ("BMP", palette, {}), ("BMP", grey.convert("1"), {}),
        ("TIFF", rgb, {"exif": exif}), ("TIFF", rgb, {"compression": "tiff_lzw"}), ("TIFF", deep, {}),
        ("TIFF", rgb, {"compression": "jpeg"}), ("TIFF", rgba, {"compression": "tiff_adobe_deflate"}),
        ("TIFF", grey.convert("1"), {"compression": "group4"}), ("TIFF", rgb, frames()),
        ("TIFF", rgb.convert("CMYK"), {}),
        ("WEBP", rgb, {"exif": exif}), ("WEBP", rgba, {"lossless": True}), ("WEBP", rgb, frames()),
        ("PPM", rgb, {}), ("PPM", grey, {}), ("PPM", deep, {}), ("PPM", fractions, {}),
    ]  # fmt: skip
    seeds = {}
    for number, (name, image, options) in enumerate(variants):
        stream = io.BytesIO()
        image.copy().save(stream, name, **options)  # a JPEG's settings stick to the image that was saved
        seeds[f"{number:02d} {name} {image.mode} {' '.join(options)}".strip()] = stream.getvalue()
    return seeds


def damage(data, rng):
    """Damage a file in one to four places, as transfer, storage and attackers do."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(0, max(1, len(data))))
        if rng.random() < 0.5:  # headers are short: without this, most damage would only hit pixels
            place = int(rng.integers(0, min(128, max(1, len(data)))))
        length = int(rng.integers(1, 33))
        match rng.integers(0, 8):
            case 0:
                del data[place:]
            case 1:
                data[place : place + 1] = bytes([rng.integers(0, 256)])
            case 2:
                data[place : place + length] = rng.bytes(length)
            case 3:
                data[place : place + length] = bytes([rng.choice([0, 255])]) * length
            case 4:
                del data[place : place + length]
            case 5:
                data[place:place] = rng.bytes(length)
            case 6:
                data[place:place] = data[place : place + length]
            case 7:
                extreme = int(rng.choice([0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
                data[place : place + 4] = extreme.to_bytes(4, "big" if rng.random() < 0.5 else "little")
    return bytes(data)


def mend_checksums(data):
    """Give the chunks of a PNG file right checksums again, so that damage reaches what comes after their check."""
    data, place = bytearray(data), 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(data)


def make_file(number, seed, seeds):
    """Build damaged file ``number`` of a run: the same for the same seed, whatever came before it."""
    rng = np.random.default_rng((seed, number))
    name = list(seeds)[number % len(seeds)]
    data = damage(seeds[name], rng)
    return name, mend_checksums(data) if data.startswith(b"\x89PNG") and rng.random() < 0.75 else data


def judge(data):
    """Decode a file and say how it went."""
    from sktl.inputs import RowError, open_rows

    try:
        row = open_rows([data])[0]
        pixels = row.pixels()
    except RowError:
        return "documented error"
    except Exception as error:
        return f"other: {type(error).__name__}: {error}"
    is_sound = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.flags.c_contiguous
    return "decoded" if is_sound else f"other: pixels of {pixels.dtype} {pixels.shape}"


def work(connection, start, stop, seed):
    """Decode files one after another, and report each."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff complains there about every file
    warnings.simplefilter("ignore")
    seeds = build_seeds()
    for number in range(start, stop):
        connection.send(judge(make_file(number, seed, seeds)[1]))


def watch(n_files, seed, timeout):
    """Decode all files in a process that is replaced when it hangs or dies; yield (number, outcome, seconds)."""
    context = multiprocessing.get_context("spawn")
    number = 0
    while number < n_files:
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(sender, number, n_files, seed), daemon=True)
        worker.start()
        sender.close()
        limit = timeout + 60  # the first answer waits for the imports
        outcome = ""
        while number < n_files and outcome not in ("hang", "crash"):
            start = time.perf_counter()
            try:
                outcome = receiver.recv() if receiver.poll(limit) else "hang"
            except EOFError:
                outcome = "crash"
            yield number, outcome, time.perf_counter() - start
            number, limit = number + 1, timeout
        worker.kill()
        worker.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000, help="damaged files to decode (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="start of the generator (default: 0)")
    parser.add_argument("--timeout", type=float, default=20, help="seconds after which a file hangs (default: 20)")
    options = parser.parse_args()
    names = list(build_seeds())
    table = collections.defaultdict(collections.Counter)
    slowest, n_unexpected = 0.0, 0
    for number, outcome, seconds in watch(options.files, options.seed, options.timeout):
        name = names[number % len(names)]
        table[name.split()[1]][outcome.split(":")[0]] += 1
        slowest = max(slowest, seconds if number else 0.0)
        if outcome not in EXPECTED:
            n_unexpected += 1
            print(f"seed {options.seed}, file {number} ({name}): {outcome}")
    columns = (*EXPECTED, "other", "hang", "crash")
    print(f"{'format':8s}" + "".join(f"{column:>18s}" for column in columns))
    for name, counts in sorted(table.items()):
        print(f"{name:8s}" + "".join(f"{counts[column]:18,d}" for column in columns))
    totals = sum(table.values(), collections.Counter())
    print(f"{'all':8s}" + "".join(f"{totals[column]:18,d}" for column in columns))
    print(f"slowest file: {slowest:.2f} s")
    return int(n_unexpected > 0)


if __name__ == "__main__":
    sys.exit(main())
