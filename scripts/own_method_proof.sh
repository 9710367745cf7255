#!/usr/bin/env bash
# Somebody's method in our table, as they would do it: an empty directory, the wheel of scripts/wheel.sh in a fresh virtual environment,
# diffusers from PyPI. Our direct-inf and scalecrafter, their plain pipeline ("mine") and their patched U-Net ("patched") come into one
# report. Fails unless their plain DDIM images equal ours to a level of 1 and the paired differences are zero within what that moves.
#
# usage: scripts/own_method_proof.sh [WORK]     default: target/own-method; takes minutes on two cores
#   IMAGES=6 STEPS=10       how many images a cell, of how many steps
#   SYSTEM_PACKAGES=1       take torch and diffusers from the interpreter's own packages, where there is no network
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(realpath -m "${1:-$root/target/own-method}")
python=${PYTHON:-python3}
wheel=("$root"/target/wheel/dist/scalebench-*.whl)
[ -f "${wheel[0]}" ] || { echo "expected a wheel in target/wheel/dist: run scripts/wheel.sh first" >&2; exit 2; }
rm -rf "$work"
mkdir -p "$work/run"
"$python" -m venv ${SYSTEM_PACKAGES:+--system-site-packages} "$work/venv"
[ -n "${SYSTEM_PACKAGES:-}" ] || "$work/venv/bin/pip" --quiet install torch diffusers transformers safetensors
"$work/venv/bin/pip" --quiet install --no-index --no-deps "${wheel[0]}"
export PATH="$work/venv/bin:$PATH" XDG_CACHE_HOME="$work/cache" HF_HUB_OFFLINE=1

cd "$work/run"
cat >own.yaml <<YAML
base: quick
question: Does a method made elsewhere get the numbers that the same images made here get?
methods:
  - direct-inf
  - scalecrafter
  - images: "mine/{scale}x/{index:06}.png"
    name: mine
    title: Direct-Inf by diffusers
    source: diffusers' StableDiffusionPipeline, as it is
  - images: "patched/{scale}x/{index:06}.png"
    name: patched
    title: Middle block dilated by a patch
    source: scripts/diffusers_jobs.py --with patch
scales: [4]
images: ${IMAGES:-6}
sampler: {steps: ${STEPS:-10}}
YAML
scalebench unpack data
scalebench jobs own.yaml --out jobs.csv
for method in mine:plain patched:patch; do
    make=(python "$root/scripts/diffusers_jobs.py" jobs.csv --method "${method%:*}" --with "${method#*:}"
        --checkpoint data/datasets/pocket --out "${method%:*}" --device cpu)
    # Interrupted in the middle, and again: the second goes on.
    "${make[@]}" --limit 2 2>/dev/null
    "${make[@]}" 2>/dev/null
done
scalebench sweep own.yaml --out results
scalebench results results --format markdown >table.md
python - <<'PYTHON'
import csv
from pathlib import Path

import numpy as np
from PIL import Image

largest, moved, values = 0, 0, 0
for ours in sorted(Path("results/cells/pocket/4x-direct-inf/images").glob("*.png")):
    a, b = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (ours, Path("mine/4x") / ours.name))
    largest, moved, values = max(largest, abs(a - b).max()), moved + (a != b).sum(), values + a.size
print(f"direct-inf and mine: largest difference {largest} of 255, {moved} of {values} values differ")
rows = {row["method"]: row for row in csv.DictReader(open("results/results.csv"))}
assert largest <= 1, largest
assert set(rows) == {"direct-inf", "scalecrafter", "mine", "patched"}, set(rows)
for score in ("fid_r", "kid_r", "fid_b", "kid_b"):
    ours, difference = float(rows["direct-inf"][score]), float(rows["mine"]["d_" + score])
    other = float(rows["patched"]["d_" + score])
    print(f"{score}: direct-inf {ours:.6g}, mine - direct-inf {difference:+.2g}, patched - direct-inf {other:+.3g}")
    # A level of 1 in a few values moves features in their fourth digit.
    assert abs(difference) <= 2e-3 * abs(ours) + 1e-5, (score, difference)
    assert abs(other) > 10 * abs(difference), (score, other, difference)
seconds = {row["method"]: row["seconds_per_image"] for row in csv.DictReader(open("results/timings.csv"))}
assert all(float(seconds[method]) > 0 for method in rows), seconds
PYTHON
mkdir -p "$work/report"
cp -r results/report/. results/results.csv results/results.parquet results/timings.csv results/run.yaml own.yaml "$work/report/"
echo "the report is in $work/report"
