#!/usr/bin/env bash
# Builds scalebench for NVIDIA GPUs, on a machine with or without one.
#
#     scripts/build_cuda.sh           target/cuda/scalebench, and the tests that bench_cuda.sh runs, beside it
#     scripts/build_cuda.sh --check   only type-checks the Rust code of the features cuda and cudnn, without a toolkit
#
# FEATURES=cuda,cudnn adds cuDNN for what candle convolves itself (CLIP's patches); our own convolutions do not use it.
# CUDA 13.0 comes from $CUDA_HOME if that is set, else as wheels from PyPI (105 MB, kept in target/cuda-toolkit; needs python3
# with pip, unzip and gcc). No GPU and no driver are needed to build: NVIDIA's libraries are linked by stubs that have their names.
# What is built starts only where there is a driver (580 or newer, for CUDA 13) and CUDA's libraries, and runs on GPUs of compute
# capability 8.0 and above (Ampere). A first build takes about a quarter of an hour of one core, most of it candle's kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
export CUDARC_CUDA_VERSION=13000 CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}"

if [ "${1:-}" = --check ]; then
    # A compiler that compiles nothing: it writes the files that it is asked for, empty.
    home=$(mktemp -d)
    trap 'rm -rf "$home"' EXIT
    mkdir -p "$home/bin" "$home/include" "$home/lib64"
    cat >"$home/bin/nvcc" <<'NVCC'
#!/usr/bin/env bash
for word in "$@"; do
    case $word in
    --version) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
    *.cu) source=$(basename "$word" .cu) ;;
    esac
    case ${last:-} in
    -o) : >"$word" ;;
    --output-directory) folder=$word ;;
    esac
    last=$word
done
[ -z "${folder:-}" ] || : >"$folder/$source.ptx"
NVCC
    chmod +x "$home/bin/nvcc"
    : >"$home/include/cuda.h"
    export CUDA_HOME="$home" CUDA_PATH="$home" NVCC="$home/bin/nvcc" PATH="$home/bin:$PATH" CUDAFORGE_HOME="$home/cudaforge"
    cargo check --release -p scalebench --features cuda,cudnn --target-dir target/cuda-check
    exit
fi

if [ -z "${CUDA_HOME:-}" ]; then
    toolkit=$PWD/target/cuda-toolkit
    CUDA_HOME=$toolkit/site/nvidia/cu13
    if [ ! -e "$toolkit/complete" ]; then
        mkdir -p "$toolkit/wheels"
        # As torch 2.11 pins them. Newer compilers write PTX that driver 580 does not read.
        python3 -m pip download --quiet --no-deps --dest "$toolkit/wheels" nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 \
            nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96
        for wheel in "$toolkit"/wheels/*.whl; do unzip -q -o "$wheel" -d "$toolkit/site"; done
        chmod a+rx "$CUDA_HOME"/bin/* "$CUDA_HOME"/nvvm/bin/*
        # Wheels have the versioned name only, and no lib64.
        ln -sfn lib "$CUDA_HOME/lib64"
        ln -sf libcudart.so.13 "$CUDA_HOME/lib/libcudart.so"
        touch "$toolkit/complete"
    fi
    cargo fetch --quiet
    # Stubs: the functions that cudarc declares, in libraries of the right names.
    python3 - "$CUDA_HOME/lib/stubs" <<'STUBS'
import json, os, pathlib, re, subprocess, sys

metadata = subprocess.check_output(["cargo", "metadata", "--format-version=1", "--features", "cuda,cudnn"])
cudarc = next(p for p in json.loads(metadata)["packages"] if p["name"] == "cudarc")
source = pathlib.Path(cudarc["manifest_path"]).parent / "src"
stubs = pathlib.Path(sys.argv[1])
stubs.mkdir(parents=True, exist_ok=True)
libraries = {"cuda": ("driver", 1), "nvrtc": ("nvrtc", 13), "curand": ("curand", 10), "cublas": ("cublas", 13), "cublasLt": ("cublaslt", 13),
             "cudnn": ("cudnn", 9)}
for name, (folder, version) in libraries.items():
    text = "".join(file.read_text() for file in (source / folder / "sys").glob("*.rs"))
    functions = sorted(set(re.findall(r'extern "C" \{\s*(?:#\[[^\]]*\]\s*)*(?:pub )?fn (\w+)\(', text)))
    code = stubs / f"{name}.c"
    code.write_text("".join(f"void {function}(void) {{}}\n" for function in functions))
    subprocess.check_call(["gcc", "-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,lib{name}.so.{version}", "-o", stubs / f"lib{name}.so", code])
STUBS
fi
export CUDA_HOME PATH="$CUDA_HOME/bin:$PATH" CUDAFORGE_HOME="$PWD/target/cuda-build/cudaforge"
nvcc --version | tail -2
# One set of features for all, or candle would be compiled twice.
build="--release --workspace --features ${FEATURES:-cuda} --target-dir target/cuda-build"
cargo build $build
mkdir -p target/cuda
cp target/cuda-build/release/scalebench target/cuda/
cargo test $build --lib --no-run --message-format=json | python3 -c '
import json, shutil, sys
for line in sys.stdin:
    message = json.loads(line)
    name = message.get("target", {}).get("name", "").removeprefix("scalebench_")
    if message.get("executable") and message["profile"]["test"] and name in ("kernels", "generation"):
        shutil.copy(message["executable"], f"target/cuda/{name}-tests")'
strip target/cuda/scalebench target/cuda/*-tests
ls -l target/cuda
