#!/usr/bin/env python3
"""Speed of the metrics crate against the Python tools, in one alternating run.

    cargo build --release --workspace --example metric_speed
    python scripts/bench_metrics.py [--repeats 5] [--rows 10000] [--only fid,kid,prdc,resize]

Needs numpy, scipy, torch, Pillow, torch-fidelity 0.4.0, pytorch-fid 0.3.0 and clean-fid 0.1.35.

Ours and theirs take turns (ours, theirs, ours, theirs, ...), each in a process of its own, so that a
machine that is busy with other things is busy for both; what counts is the ratio of the medians. Ours
runs on RAYON_NUM_THREADS threads (2 unless set), theirs on their defaults. Times exclude imports and
reading the arrays. CPU seconds, of all threads together, are the steadier figure on a busy machine.
A metric's runs end early once the other tool has taken --slow seconds in all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 8


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--only", default="fid,kid,prdc,resize")
    parser.add_argument("--slow", type=float, default=600.0, help="stop repeating a metric after so many seconds of the other tool")
    parser.add_argument("--theirs", help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_features(path, rows, seed, shift):
    """Like pool features: rectified, correlated, a decaying spectrum on top of noise."""
    import numpy as np

    mixing = np.random.default_rng(1).standard_normal((512, 2048), dtype=np.float32)
    mixing *= (np.arange(1, 513, dtype=np.float32) ** -0.5)[:, None] * 0.35
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((rows, 512), dtype=np.float32) @ mixing
    x += draw.standard_normal((rows, 2048), dtype=np.float32) * 0.25 + shift
    np.save(path, np.maximum(x, 0).astype(np.float32))


def make_image(path, seed, side=1024):
    """1/f noise, which compresses about as a photograph does."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    planes = [np.fft.irfft2(np.fft.rfft2(draw.standard_normal((side, side))) / frequency**1.5, s=(side, side)) for _ in range(3)]
    image = np.stack(planes, -1)
    image = (image - image.min()) / (image.max() - image.min()) * 255
    Image.fromarray(image.astype(np.uint8)).save(path)


def without_torchvision():
    """torch-fidelity imports torchvision for its data sets and VGG, which no metric here touches."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        from unittest.mock import MagicMock

        dataset = type("Dataset", (), {})
        for name in ["", ".transforms", ".datasets", ".transforms.functional", ".models"]:
            sys.modules["torchvision" + name] = MagicMock(CIFAR10=dataset, CIFAR100=dataset, STL10=dataset)


def theirs(metric, files):
    """One run of the tool; prints what our example prints."""
    import resource
    import time
    import warnings

    import numpy as np

    warnings.simplefilter("ignore")
    if metric == "resize":
        from PIL import Image

        from cleanfid.resize import build_resizer

        resize = build_resizer("clean")

        def run():
            return [float(sum(resize(np.array(Image.open(f).convert("RGB"))).sum(dtype=np.float64) for f in files))]

    else:
        x, y = (np.load(f) for f in files)
        if metric == "fid":
            without_torchvision()
            from pytorch_fid.fid_score import calculate_frechet_distance

            def run():
                # As pytorch-fid: features are collected into a float64 array before this.
                moments = [(np.mean(a, axis=0), np.cov(a, rowvar=False)) for a in (x, y)]
                return [float(calculate_frechet_distance(*moments[0], *moments[1]))]

            x, y = x.astype(np.float64), y.astype(np.float64)
        else:
            without_torchvision()
            import torch

            x, y = torch.from_numpy(x), torch.from_numpy(y)
            if metric == "kid":
                from torch_fidelity.metric_kid import kid_features_to_metric

                def run():
                    options = dict(kid_subsets=100, kid_subset_size=1000, rng_seed=2020, verbose=False)
                    return list(kid_features_to_metric(x, y, **options).values())

            else:
                from torch_fidelity.metric_prc import calculate_precision_recall_full

                def run():
                    return list(calculate_precision_recall_full(x, y, 3, 10_000))

    start, cpu = time.perf_counter(), time.process_time()
    values = run()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"metric": metric, "seconds": seconds, "cpu_seconds": cpu, "values": values, "peak_mib": peak}))


def main():
    arguments = parse()
    if arguments.theirs:
        return theirs(arguments.theirs, arguments.files)
    example = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/examples/metric_speed"
    environment = {**os.environ, "RAYON_NUM_THREADS": os.environ.get("RAYON_NUM_THREADS", "2")}

    def run(command, env):
        done = subprocess.run([str(c) for c in command], env=env, check=True, capture_output=True, text=True)
        return json.loads(done.stdout.strip().splitlines()[-1])

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        arrays = [folder / "x.npy", folder / "y.npy"]
        images = [folder / f"{i}.png" for i in range(IMAGES)]
        metrics = arguments.only.split(",")
        if set(metrics) - {"resize"}:
            make_features(arrays[0], arguments.rows, 2, 0.27)
            make_features(arrays[1], arguments.rows, 3, 0.25)
        if "resize" in metrics:
            for i, path in enumerate(images):
                make_image(path, i)
        what = {
            "fid": ("FID", "pytorch-fid: np.mean, np.cov, sqrtm"),
            "kid": ("KID 100 x 1000", "torch-fidelity"),
            "prdc": ("precision and recall, k = 3 (ours: and density, coverage)", "torch-fidelity"),
            "resize": (f"decode and resize {IMAGES} PNGs of 1024 x 1024 to 299 x 299, one after the other", "clean-fid"),
        }
        print(f"{arguments.rows} x 2048 features per side; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        for metric in metrics:
            files = images if metric == "resize" else arrays
            ours, other = [], []
            for _ in range(arguments.repeats):
                ours.append(run([example, metric, *files], environment))
                other.append(run([sys.executable, __file__, "--theirs", metric, *files], os.environ))
                if sum(r["seconds"] for r in other) > arguments.slow:
                    break
            print(f"\n{what[metric][0]}, {len(ours)} alternating runs; theirs: {what[metric][1]}")
            for key, unit in [("seconds", "s wall"), ("cpu_seconds", "s CPU"), ("peak_mib", "MiB peak")]:
                a, b = (statistics.median(r[key] for r in runs) for runs in (ours, other))
                print(f"  {unit:9} ours {a:10.3f}   theirs {b:10.3f}   ratio {b / a:6.2f}")
            print(f"  values    ours {ours[-1]['values'][:2]}   theirs {other[-1]['values'][:2]}")


if __name__ == "__main__":
    main()
