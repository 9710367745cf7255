#!/usr/bin/env python3
"""Peak memory of features from tar shards: made-up shards of small images, as img2dataset writes them, and what `features` holds.

    python scripts/shards_memory.py [--images 50000] [--side 32] [--extractor datasets/pocket-inception] [--scalebench PATH]

Prints for a tenth of the images and for all of them the peak of the resident set, and what the difference is for each image, beside the
bytes of its features. What grows with the number of images should be features and names; nothing else. Needs pillow and numpy.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PER_SHARD = 5000


def write_shards(folder, n, side):
    random = np.random.default_rng(0)
    for shard in range(-(-n // PER_SHARD)):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for key in range(shard * PER_SHARD, min(n, (shard + 1) * PER_SHARD)):
                coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                image = io.BytesIO()
                Image.fromarray(coarse).resize((side, side), Image.BICUBIC).save(image, "JPEG", quality=90)
                caption = f"made-up image {key}"
                for ending, content in [("jpg", image.getvalue()), ("txt", caption.encode()), ("json", json.dumps({"caption": caption}).encode())]:
                    info = tarfile.TarInfo(f"{key:09}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def peak(command):
    """Seconds, and peak of the resident set in bytes, of a command."""
    # A process of its own: the peak of all children so far is all that the system tells.
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    start = time.time()
    output = subprocess.run([sys.executable, "-c", code, *map(str, command)], check=True, capture_output=True, text=True).stdout
    return time.time() - start, 1024 * int(output.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--images", type=int, default=50000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--extractor", type=Path, default=root / "datasets" / "pocket-inception")
    parser.add_argument("--scalebench", type=Path, default=root / "target" / "release" / "scalebench")
    args = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as work:
        for n in (args.images // 10, args.images):
            folder = Path(work) / str(n)
            folder.mkdir()
            write_shards(folder, n, args.side)
            size = sum(file.stat().st_size for file in folder.iterdir())
            pattern = folder / f"{{00000..{-(-n // PER_SHARD) - 1:05}}}.tar"
            features = Path(work) / f"{n}.safetensors"
            seconds, memory = peak([args.scalebench, "features", "--images", pattern, "--extractor", args.extractor, "--out", features])
            dim = json.loads(features.read_bytes()[8 : 8 + int.from_bytes(features.read_bytes()[:8], "little")])["features"]["shape"][1]
            found.append((n, memory))
            print(
                f"{n} images in {size / 2**20:.0f} MiB of shards: {seconds:.0f} s, peak {memory / 2**20:.1f} MiB, "
                f"features {4 * dim * n / 2**20:.1f} MiB ({dim} values)",
                flush=True,
            )
    (few, least), (many, most) = found
    each = (most - least) / (many - few)
    print(f"{each:.0f} bytes for each further image; its features are {4 * dim}")


if __name__ == "__main__":
    main()
