#!/usr/bin/env python3
"""Measures the pocket checkpoint and writes its model card, datasets/pocket/README.md.

    python scripts/pocket_card.py [--images 256] [--work DIR]

Everything is measured by the `scalebench` binary (target/release); this script only calls it and looks up nearest
neighbours in the feature files. It also draws grid.png: the first 32 prompts, real render and generation side by side.
Needs numpy, safetensors and pillow.
"""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
POCKET, INCEPTION = ROOT / "datasets/pocket", ROOT / "datasets/pocket-inception"


def scalebench(*args):
    command = [str(ROOT / "target/release/scalebench"), *map(str, args)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def features(images, out):
    scalebench("features", "--images", images, "--extractor", INCEPTION, "--out", out)
    tensors = load_file(out)
    return max((t for t in tensors.values() if t.ndim == 2), key=lambda t: t.size).astype(np.float64)


def fid(real, fake):
    return json.loads(scalebench("score", "--real", real, "--fake", fake, "--metrics", "fid", "--json"))


def grid(prompts, real, generated, out, columns=8, n=32):
    """Real render and generation side by side, with the caption below."""
    from PIL import Image, ImageDraw

    width, height = 140, 84
    page = Image.new("RGB", (columns * width, n // columns * height), "white")
    draw = ImageDraw.Draw(page)
    for i in range(n):
        x, y = i % columns * width, i // columns * height
        page.paste(Image.open(real / f"{i:06}.png"), (x, y))
        page.paste(Image.open(generated / f"{i:06}.png"), (x + 66, y))
        draw.text((x + 2, y + 67), prompts[i][:26], fill="black")
    page.save(out)


def show(row):
    estimate = row["fid"]
    return f"{estimate['value']:.3f} ({estimate['lo']:.3f} to {estimate['hi']:.3f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--work", type=Path, default=ROOT / "runs/pocket-card")
    args = parser.parse_args()
    n, work = args.images, args.work
    work.mkdir(parents=True, exist_ok=True)

    # Prompt i and reference image i are the same emoji; the other half of the reference shows other emoji.
    scalebench("sweep", ROOT / "experiments/pocket.yaml", "--out", work / "base", "--set", f"images={n}")
    generated = work / "base/cells/pocket/1x-direct-inf/images"
    scalebench("dataset", "--split", "reference", "--views", 2 * n, "--size", 64, "--out", work / "reference", "--png")
    halves = []
    for half in (0, 1):
        folder = work / f"half{half}"
        folder.mkdir(exist_ok=True)
        for i in range(n):
            (folder / f"{i:06}.png").write_bytes((work / f"reference/{half * n + i:06}.png").read_bytes())
        halves.append(folder)
    scalebench("reconstruct", "--checkpoint", POCKET, "--images", halves[1], "--out", work / "reconstructed")
    f = {name: features(folder, work / f"{name}.safetensors")
         for name, folder in [("generated", generated), ("half0", halves[0]), ("half1", halves[1]), ("reconstructed", work / "reconstructed")]}
    score = lambda name: fid(work / "half0.safetensors", work / f"{name}.safetensors")
    rows = [("floor: the other half of the reference set", score("half1")),
            ("ceiling: VAE reconstructions of the other half", score("reconstructed")), ("generated", score("generated"))]

    # Retrieval: is the nearest reference image (cosine, centred) the prompt's emoji, or at least of its group?
    scalebench("dataset", "--split", "reference", "--views", 1, "--size", 8, "--out", work / "names")
    names = [line.rstrip("\n").split("\t") for line in open(work / "names/names.tsv", encoding="utf-8")]
    group_of = {name: group for _, name, group in names}
    prompts = [json.loads(line)["prompt"] for line in open(generated.parent / "manifest.jsonl", encoding="utf-8")]
    grid(prompts, halves[0], generated, POCKET / "grid.png")
    groups = [group_of[p] for p in prompts]
    mean = f["half0"].mean(0)
    unit = lambda x: (x - mean) / np.linalg.norm(x - mean, axis=1, keepdims=True)
    order = np.argsort(-(unit(f["generated"]) @ unit(f["half0"]).T), axis=1)
    own = np.mean(order[:, 0] == np.arange(n))
    five = np.mean([i in row[:5] for i, row in enumerate(order)])
    group = np.mean([groups[row[0]] == groups[i] for i, row in enumerate(order)])
    chance = sum((groups.count(g) / n) ** 2 for g in set(groups))

    training = json.load(open(POCKET / "training.json"))
    lines = [
        "# The pocket checkpoint", "",
        "Stable Diffusion 1.5's layout at a fraction of its width, trained from scratch by `scripts/train_pocket.py` on the emoji set",
        "(`datasets/README.md`), 64×64 px, captions = names, 10 % caption dropout. Diffusers folder, f16, averaged weights. Its figures rank",
        "methods on this model; they say nothing about any other.", "", "| stage | steps | images | hours | last logged |", "| --- | --- | --- | --- | --- |",
    ]
    for stage in ("vae", "unet", "inception"):
        t = training[stage]
        last = ", ".join(f"{k} {v}" for k, v in t["last"].items() if k in ("loss", "psnr", "mse", "accuracy"))
        lines.append(f"| {stage} | {t['steps']} | {t['images']} | {t['seconds'] / 3600:.2f} | {last} |")
    experiment = (ROOT / "experiments/pocket.yaml").read_text()
    sampler = next(line.strip() for line in experiment.splitlines() if line.startswith("sampler:"))
    lines += ["", f"PyTorch {training['versions']['torch']}, CPU, shared machines; hours are summed over processes.", "",
              "![Pairs of a real render and a generation for the first 32 prompts](grid.png)", "",
              "*The first 32 prompts: left the real render, right the generation. The prompt does not say where the object is placed.*", "",
              f"## Quality, measured on {n} images at 64×64", "", "| images | FID to half of the reference set (95 % interval) |", "| --- | --- |"]
    lines += [f"| {name} | {show(row)} |" for name, row in rows]
    lines += ["", "The generated images show the emoji of the half that they are compared with, floor and ceiling show other emoji: so generated",
              "images can lie below the floor."]
    lines += ["", "| retrieval of generated images among the references | share | by chance |", "| --- | --- | --- |",
              f"| nearest is the prompt's emoji | {own:.3f} | {1 / n:.3f} |",
              f"| it is among the five nearest | {five:.3f} | {5 / n:.3f} |",
              f"| nearest is of the prompt's group | {group:.3f} | {chance:.3f} |", "",
              f"Sampled by `experiments/pocket.yaml`: `{sampler}`.",
              f"Made by `python scripts/pocket_card.py --images {n}`.", ""]
    (POCKET / "README.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
