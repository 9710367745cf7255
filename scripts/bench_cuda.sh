#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and PyTorch: are the results right, and how fast are they?
#
#     scripts/bench_cuda.sh [OPTIONS OF bench_cuda.py]
#
# Runs what build_cuda.sh left in target/cuda, which may have been built elsewhere: the tests of the kernels and the golden tests of
# the networks on the GPU (f32 within 1e-3 of the reference's root mean square; f16 and bf16 within what rounding explains), then
# images made on the GPU against the same on the CPU, then the speed against PyTorch. About ten minutes.
# diffusers may be a folder of unpacked wheels on PYTHONPATH. CUDA's libraries are torch's own.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=target/cuda
for file in scalebench kernels-tests generation-tests; do
    [ -x "$bin/$file" ] || { echo "$bin/$file: not found; expected scripts/build_cuda.sh to have run" >&2; exit 2; }
done
python=${PYTHON:-python3}
site=$("$python" -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))')
libraries=$(find "$site/nvidia" -maxdepth 2 -name lib -printf '%p:' 2>/dev/null || true)
export LD_LIBRARY_PATH="$libraries/usr/local/nvidia/lib64:${LD_LIBRARY_PATH:-}"
export SCALEBENCH_TEST_DEVICE=cuda:0

echo "== kernels"
"$bin/kernels-tests" gpu
echo "== goldens"
CARGO_MANIFEST_DIR=$PWD/crates/generation "$bin/generation-tests" parity --nocapture 2>&1 | tee "$bin/goldens.log" | grep -E '^test |test result|panicked'
echo "== largest deviations, of the reference's root mean square"
grep -E '^[^ ].*: [0-9.]+e-?[0-9]+$' "$bin/goldens.log" | sort -g -t: -k2 | tail -3 || true
grep -E '(bf16|f16): ' "$bin/goldens.log" || true
unset SCALEBENCH_TEST_DEVICE

echo "== an image on the CPU and on the GPU"
for device in cpu cuda; do
    "$bin/scalebench" generate --checkpoint datasets/pocket --prompt "cat face" --size 128x128 --guidance-scale 3.5 --method scalecrafter \
        --device $device --out "$bin/$device.png"
done
"$python" - "$bin/cpu.png" "$bin/cuda.png" <<'COMPARE'
import sys
import numpy as np
from PIL import Image

a, b = (np.asarray(Image.open(file)).astype(int) for file in sys.argv[1:])
print(f"largest difference {abs(a - b).max()} of 255, {(a != b).mean():.4%} of the values differ")
assert abs(a - b).max() <= 8, "the images are not the same"
COMPARE

echo "== speed"
exec "$python" scripts/bench_cuda.py --binary "$bin/scalebench" "$@"
