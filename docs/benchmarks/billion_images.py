"""What a billion images would take: rates, bytes, files and money, from few measured numbers and stated assumptions.

Nothing is run; every number that goes in can be given::

    python docs/benchmarks/billion_images.py
    python docs/benchmarks/billion_images.py --images 1e8 --cores 32 --gpu-rate resnet50=9000 --gpu-price 2.5

The machine computes as fast as its slowest part: reading images, decoding them on the cores, running the network.
"""

import argparse
import math
from dataclasses import dataclass

WIDTHS = {"mobilenetv3_small_100": 1024, "resnet50": 2048}
# Files per second and core, decoding included: sktl, embedding_speed.py, two cores of a Xeon with AMX, bfloat16.
CPU_RATES = {"mobilenetv3_small_100": 459 / 2, "resnet50": 133 / 2}
# Images per second, the network alone: timm's published table, RTX 5090, mixed precision, compiled, 224 pixels.
GPU_RATES = {"mobilenetv3_small_100": 95_800, "resnet50": 12_400}
# What sktl.embedding.object_store keeps of each row in memory, and embed_to_parquet of the name of each row it found.
CATALOG_BYTES, NAME_BYTES = 24, 120
KEY_AND_CHECKSUM_BYTES = 28
LIST_PAGE = 1000


@dataclass
class Machine:
    """What one machine does with one network.

    Attributes
    ----------
    name, network : str
        For the table.
    limits : dict of str to float
        Images per second that each of its parts allows.
    price : float
        Per hour.
    """

    name: str
    network: str
    limits: dict
    price: float

    @property
    def bound(self):
        return min(self.limits, key=self.limits.get)

    @property
    def rate(self):
        return self.limits[self.bound]


def machines(options):
    """Yield the combinations of the table: the cores alone, and with a GPU."""
    reading = options.bandwidth * 1e9 / 8 / (options.image_kb * 1e3)
    for network in WIDTHS:
        computing = options.cores * CPU_RATES[network]
        yield Machine(
            f"{options.cores} cores",
            network,
            {"cores": computing, "reading": reading},
            options.cores * options.core_price,
        )
        limits = {"GPU": options.gpu_rate[network], "decoding": options.cores * options.decode_rate, "reading": reading}
        price = options.gpu_price + options.cores * options.core_price
        yield Machine(f"{options.cores} cores + GPU", network, limits, price)


def print_rates(options):
    print(f"{'network':24}{'machine':18}{'images/s':>9}  {'bound by':10}{'machine-days':>13}{'cost per million':>18}")
    for machine in machines(options):
        days = options.images / machine.rate / 86_400
        cost = machine.price * 1e6 / machine.rate / 3600
        print(f"{machine.network:24}{machine.name:18}{machine.rate:9,.0f}  {machine.bound:10}{days:13,.1f}{cost:18.2f}")


def print_bytes(options):
    read = options.images * options.image_kb * 1e3
    print(f"\nread: {read / 1e12:,.1f} TB of images")
    for network, width in WIDTHS.items():
        row = 4 * width
        shards = math.ceil(options.images / options.rows_per_shard)
        cached = math.ceil(options.images * (row + KEY_AND_CHECKSUM_BYTES) / 2**20)
        print(f"{network}: {options.images * row / 1e12:,.1f} TB of embeddings", end="; ")
        print(f"Parquet: {shards:,} files of {options.rows_per_shard * row / 1e6:,.0f} MB", end="; ")
        print(f"shared store: {cached:,} shards of 1 MiB")


def print_breaking_points(options):
    """Print what stops working first as the number of images grows, the smallest number first."""
    memory = options.memory_gb * 1e9
    listed = options.list_seconds * options.lists_per_second * LIST_PAGE
    points = {
        "the GPU waits for the decoders": 0 if _decoding_binds(options) else math.inf,
        f"listing the shared store of 512-number rows takes {options.list_seconds:g} s": listed * 2**20 / (4 * 512),
        "names of found rows fill the memory of a restarted embed_to_parquet": memory / NAME_BYTES,
        "the shared store's catalogue fills the memory of each worker": memory / CATALOG_BYTES,
        f"listing Parquet files of {options.rows_per_shard:,} rows takes {options.list_seconds:g} s": (
            listed * options.rows_per_shard
        ),
    }
    print("\nwhat breaks first, at how many images:")
    for what, at in sorted(points.items(), key=lambda item: item[1]):
        if math.isfinite(at):
            print(f"{at:18,.0f}  {what}" if at else f"{'from the first':>18}  {what}")


def _decoding_binds(options):
    return any(options.cores * options.decode_rate < rate for rate in options.gpu_rate.values())


def print_assumptions(options):
    print("\nassumptions:")
    print(f"  {options.image_kb:g} kB per image, read at {options.bandwidth:g} Gbit/s per machine")
    print(f"  {options.decode_rate:g} images decoded and resized per second and core")
    print(f"  a core costs {options.core_price:g} per hour, a GPU {options.gpu_price:g}")
    listings = f"{options.lists_per_second:g} listings of {LIST_PAGE} names per second"
    print(f"  {options.memory_gb:g} GB of memory per worker; {listings}")
    for network in WIDTHS:
        print(f"  {network}: {CPU_RATES[network]:.0f} files/s per core (measured),", end=" ")
        print(f"{options.gpu_rate[network]:,.0f} images/s on the GPU")


def _gpu_rate(text):
    name, _, rate = text.partition("=")
    if name not in WIDTHS:
        raise argparse.ArgumentTypeError(f"must be NETWORK=RATE with a network of {', '.join(WIDTHS)}")
    return name, float(rate)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=float, default=1e9)
    parser.add_argument("--image-kb", type=float, default=73, help="mean size of a file (73: a JPEG of 500 x 375)")
    parser.add_argument("--cores", type=int, default=16, help="of each machine (16)")
    parser.add_argument("--decode-rate", type=float, default=356, help="images per second and core (356: Pillow)")
    parser.add_argument("--bandwidth", type=float, default=10, help="Gbit/s of each machine (10)")
    parser.add_argument("--core-price", type=float, default=0.05, help="per hour (0.05)")
    parser.add_argument("--gpu-price", type=float, default=2.0, help="per hour (2)")
    parser.add_argument("--gpu-rate", type=_gpu_rate, action="append", default=[], metavar="NETWORK=RATE")
    parser.add_argument("--rows-per-shard", type=int, default=16_384, help="of Parquet files (16384)")
    parser.add_argument("--memory-gb", type=float, default=32, help="of each worker (32)")
    parser.add_argument("--lists-per-second", type=float, default=10, help="requests of 1000 names (10)")
    parser.add_argument("--list-seconds", type=float, default=60, help="what is too long for a listing (60)")
    options = parser.parse_args()
    options.gpu_rate = {**GPU_RATES, **dict(options.gpu_rate)}
    print(f"{options.images:,.0f} images\n")
    print_rates(options)
    print_bytes(options)
    print_breaking_points(options)
    print_assumptions(options)


if __name__ == "__main__":
    main()
