#!/usr/bin/env bash
# Builds the program as a Python wheel (maturin, bindings = "bin"), installs it into a clean virtual environment and tries it in an
# empty directory: version, a built-in experiment, its resumption, what travels in it.
#
# usage: scripts/wheel.sh [WHEEL]     builds target/wheel/dist/*.whl, or tries one that there is; PYTHON=python3.12 chooses another
#                                     interpreter
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$root/target/wheel
python=${PYTHON:-python3}
rm -rf "$work"/{build,clean,empty,cache}
mkdir -p "$work/dist" "$work/empty" "$work/cache"

if [ $# -gt 0 ]; then
    wheel=("$(realpath "$1")")
else
    rm -f "$work"/dist/*
    "$python" -m venv "$work/build"
    "$work/build/bin/pip" --quiet install 'maturin>=1.9,<2'
    PATH="$work/build/bin:$PATH" maturin build --profile dist --locked --manifest-path crates/runner/Cargo.toml --out "$work/dist"
    wheel=("$work"/dist/scalebench-*.whl)
fi
echo "wheel: $(basename "${wheel[0]}"), $(stat -c %s "${wheel[0]}") bytes"

"$python" -m venv "$work/clean"
"$work/clean/bin/pip" --quiet install --no-index "${wheel[0]}"
# Nothing of this folder, of the user's cache or of a toolchain is in reach.
clean() { (cd "$work/empty" && env -i PATH="$work/clean/bin" HOME="$work/empty" XDG_CACHE_HOME="$work/cache" "$@"); }
clean scalebench --version
echo "program: $(stat -c %s "$work/clean/bin/scalebench") bytes"
small=(--set images=3 --set sampler.steps=4 --set 'scales=[4]' --set reference.images=16)
clean scalebench sweep quick "${small[@]}" >"$work/first.txt"
grep -q scalecrafter "$work/first.txt"
before=$(sha256sum "$work/empty/runs/quick/results.csv")
clean scalebench sweep quick "${small[@]}" >/dev/null
[ "$before" = "$(sha256sum "$work/empty/runs/quick/results.csv")" ]
clean scalebench unpack data
cmp "$work/empty/data/datasets/pocket/unet/diffusion_pytorch_model.safetensors" datasets/pocket/unet/diffusion_pytorch_model.safetensors
cat "$work/first.txt"
echo "the wheel works in an empty directory"
