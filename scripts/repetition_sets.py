#!/usr/bin/env python3
"""Scores the sets that a repetition score has to tell apart, where the truth is known: exact renders, generations of the training size,
renders tiled two by two, and direct inference at 4x and 16x.

    python scripts/repetition_sets.py RUN [--base RUN] [--images 64] [--reference 256] [--work DIR] [--scalebench BIN]

RUN is a run of `experiments/superres.yaml` on the pocket model; generations of the training size may come from another one, with more of
them. Sets have at most so many images. Prints a Markdown table: each set against renders of the same size in other placements, as the
protocol `pocket-texture` has it. Needs pillow.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--reference", type=int, default=256)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--scalebench", default=str(ROOT / "target/release/scalebench"))
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp())
    call = lambda *a: subprocess.run([args.scalebench, *map(str, a)], check=True, stdout=subprocess.PIPE, text=True).stdout

    def renders(split, side, n):
        out = work / f"{split}{side}"
        if not out.exists():
            call("dataset", "--split", split, "--views", n, "--size", side, "--png", "--out", out)
        return out

    def first(source, n, name, change=lambda image: image):
        out = work / name
        out.mkdir(exist_ok=True)
        for file in sorted(source.glob("*.png"))[:n]:
            change(Image.open(file).convert("RGB")).save(out / file.name)
        return out

    def tiled(image):
        page = Image.new("RGB", (2 * image.width, 2 * image.height))
        [page.paste(image, (x, y)) for x in (0, image.width) for y in (0, image.height)]
        return page

    cells = args.run / "cells/pocket"
    n = args.images
    of = {name: cells / name / "images" for name in ("1x-direct-inf", "4x-direct-inf", "16x-direct-inf")}
    if args.base:
        of["1x-direct-inf"] = args.base / "cells/pocket/1x-direct-inf/images"
    sets = [
        ("exact renders, 128 px", first(renders("train", 128, n), n, "a"), 128), ("exact renders, 256 px", first(renders("train", 256, n), n, "b"), 256),
        ("generations of the training size", first(of["1x-direct-inf"], n, "c"), 64), ("direct inference, 4×", first(of["4x-direct-inf"], n, "d"), 128),
        ("direct inference, 16×", first(of["16x-direct-inf"], n, "e"), 256), ("renders tiled 2 × 2", first(renders("train", 64, n), n, "f", tiled), 128),
    ]
    print("| set | images | repetition (95 % interval) |\n| --- | --- | --- |")
    for name, folder, side in sets:
        crops = f"4x{side // 2},grid"
        found = call("score", "--real", renders("reference", side, args.reference), "--fake", folder, "--extractor", ROOT / "datasets/pocket-inception", "--grey",
                     "--fake-crops", crops, "--real-crops", crops, "--metrics", "repetition", "--json")
        found = json.loads(found)["repetition"]
        print(f"| {name} | {found['n']} | {found['value']:.3f} ({found['lo']:.3f} to {found['hi']:.3f}) |")


if __name__ == "__main__":
    main()
