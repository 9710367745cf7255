#!/usr/bin/env python3
"""Speed of the networks against PyTorch on this machine's GPU: the second half of bench_cuda.sh, which see.

    python scripts/bench_cuda.py --binary target/cuda/scalebench [--only unet,vae] [--budget 400] [--markdown TABLE.md]

Needs torch, diffusers and safetensors, and for Inception pytorch-fid; weights are random, and the shapes those of the published networks. Each side has a process of its own
for each row, warms up, and reports the median of its runs; ours and theirs follow each other. PyTorch runs diffusers' networks
in channels-last layout with scaled-dot-product attention under inference mode: eager, and for the rows that name it compiled
by torch.compile, while there is time. Re-dilation and noise-damped guidance follow the procedure of the paper's code.
`--cpu` runs the PyTorch side and ours on the CPU with the pocket network, to try the script where there is no GPU.
"""

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_cpu import PRESET_4, PRESET_16, PRESET_16_WEAK, ROOT, SD15, SDXL, VAE, inception_weights, redilate

# name: (what, configuration, latent side, batch, dtype, method, dilations by pass, least ratio to eager, also compiled)
ROWS = {
    "unet": ("SD 1.5 U-Net f16, batch 8, 64x64 latents", "sd15", 64, 8, "f16", None, [{}], 1.0, True),
    "unet-redilated": ("SD 1.5 U-Net f16, batch 2, 128x128 latents, re-dilated (4x preset)", "sd15", 128, 2, "f16", "scalecrafter", [PRESET_4], 1.0,
                       True),
    "unet-128": ("SD 1.5 U-Net f16, batch 2, 128x128 latents", "sd15", 128, 2, "f16", None, [{}], None, False),
    "unet-bf16": ("SD 1.5 U-Net bf16, batch 8, 64x64 latents", "sd15", 64, 8, "bf16", None, [{}], None, False),
    "unet-f32": ("SD 1.5 U-Net f32, batch 2, 64x64 latents", "sd15", 64, 2, "f32", None, [{}], None, False),
    "guided-16x": ("guided step with noise-damped guidance, SD 1.5 f16, 256x256 latents (16x preset)", "sd15", 256, 2, "f16", "scalecrafter",
                   [PRESET_16, PRESET_16_WEAK], None, False),
    "sdxl": ("SDXL U-Net f16, batch 2, 128x128 latents", "sdxl", 128, 2, "f16", None, [{}], None, False),
    "sdxl-4x": ("SDXL U-Net f16, batch 2, 256x256 latents, 4x pixels", "sdxl", 256, 2, "f16", None, [{}], None, False),
    "sdxl-16x": ("SDXL U-Net f16, batch 2, 512x512 latents, 16x pixels", "sdxl", 512, 2, "f16", None, [{}], None, False),
    "vae": ("SD 1.5 VAE decode f32, 512x512", "vae", 64, 1, "f32", None, None, None, False),
    "vae-2048": ("SD 1.5 VAE decode f32, 2048x2048", "vae", 256, 1, "f32", None, None, None, False),
    "inception": ("FID Inception features f32, 64 images of 299x299", "inception", 299, 64, "f32", None, None, None, False),
}
# On the CPU: the same code on a network that it can bear.
ROWS_CPU = {
    "unet": ("pocket U-Net f32, batch 4, 16x16 latents", "pocket", 16, 4, "f32", None, [{}], None, True),
    "guided-16x": ("guided step, pocket U-Net f32, 64x64 latents (16x preset)", "pocket", 64, 2, "f32", "scalecrafter", [PRESET_16, PRESET_16_WEAK],
                   None, False),
    "inception": ("FID Inception features f32, 4 images of 299x299", "inception", 299, 4, "f32", None, None, None, False),
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/cuda/scalebench")
    parser.add_argument("--steps", type=int, default=10, help="runs to time on each side")
    parser.add_argument("--only", help="rows, of " + ", ".join(ROWS))
    parser.add_argument("--budget", type=float, default=400, help="seconds after which no row is begun")
    parser.add_argument("--device", default="cuda:0", help="which GPU")
    parser.add_argument("--cpu", action="store_true", help="try the script on the CPU")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    return parser.parse_args()


def theirs(row, config, device, steps, compiled, pipe):
    """PyTorch's side of a row: sends its median seconds and peak bytes, or what went wrong."""
    import logging
    import warnings

    import torch

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    gpu = device.startswith("cuda")
    _, kind, side, batch, dtype, _, passes, _, _ = row
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    try:
        with torch.inference_mode():
            made = {"device": device, "dtype": dtype}
            if kind == "inception":
                network = inception_weights(None).eval().to(device, memory_format=torch.channels_last)
                x = (torch.rand(batch, 3, side, side, **made) * 2 - 1).contiguous(memory_format=torch.channels_last)
                stages = [module for name, module in network.named_children() if name not in ("AuxLogits", "avgpool", "dropout", "fc")]

                def run():
                    y = x
                    for stage in stages:
                        y = stage(y)
                    return y.mean((2, 3))

            elif kind == "vae":
                from diffusers import AutoencoderKL

                network = AutoencoderKL.from_config(dict(VAE)).eval().to(device, memory_format=torch.channels_last)
                x = torch.randn(batch, 4, side, side, **made)
                run = lambda: network.decode(x).sample
            else:
                from diffusers import UNet2DConditionModel

                network = UNet2DConditionModel.from_config(json.loads(Path(config).read_text())).to(device, dtype).eval()
                network.to(memory_format=torch.channels_last)
                text = torch.randn(batch, 77, network.config.cross_attention_dim, **made)
                x = torch.randn(batch, 4, side, side, **made).contiguous(memory_format=torch.channels_last)
                added = {}
                if network.config.addition_embed_type:
                    sizes = torch.full((batch, 6), 1024, **made)
                    added = {"added_cond_kwargs": {"text_embeds": torch.randn(batch, 1280, **made), "time_ids": sizes}}
                patches = []
                for dilations in passes:
                    changed = redilate(network, dilations)
                    patches.append([(module, module.forward) for module in changed])
                    for module in changed:
                        del module.forward
                if len(patches) == 1:
                    # One pass: the network stays as it is patched.
                    for module, forward in patches.pop():
                        module.forward = forward
                    patches = [[]]
                call = torch.compile(network) if compiled else network

                def run():
                    for patch in patches:
                        for module, forward in patch:
                            module.forward = forward
                        y = call(x, 981, text, **added)
                        for module, _ in patch:
                            del module.forward
                    return y

            wait = torch.cuda.synchronize if gpu else lambda: None
            for _ in range(3):
                run()
            wait()
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            seconds = []
            for _ in range(steps):
                start = time.perf_counter()
                run()
                wait()
                seconds.append(time.perf_counter() - start)
            peak = torch.cuda.max_memory_allocated() if gpu else None
            about = f"PyTorch {torch.__version__}"
            if gpu:
                about += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name()}"
            pipe.send((statistics.median(seconds), peak, about))
    except Exception as error:  # Memory that is not enough is a finding, too.
        pipe.send((None, None, f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"))


def in_a_process(*args):
    context = multiprocessing.get_context("spawn")
    mine, other = context.Pipe()
    process = context.Process(target=theirs, args=(*args, other), daemon=True)
    process.start()
    other.close()
    try:
        return mine.recv()
    except EOFError:
        return None, None, "the process died"
    finally:
        process.join()


def ours(row, config, args, device):
    _, kind, side, batch, dtype, method, *_ = row
    command = [args.binary, "bench", {"vae": "vae", "inception": "inception"}.get(kind, "unet"), "--json", "--steps", str(args.steps)]
    command += ["--device", device, "--batch", str(batch)]
    if kind == "inception":
        command += ["--weights", config]
    else:
        command += ["--config", config, "--size", f"{side}x{side}"]
    if kind not in ("vae", "inception"):
        command += ["--dtype", dtype] + (["--method", method] if method else [])
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None, None, (done.stderr.strip().splitlines() or ["no word"])[-1]
    found = json.loads(done.stdout)
    return found["seconds"], found["peak_memory_bytes"], ""


def main():
    args = parse()
    started = time.monotonic()
    table = ROWS_CPU if args.cpu else ROWS
    device = "cpu" if args.cpu else args.device
    rows = args.only.split(",") if args.only else list(table)
    if unknown := set(rows) - set(table):
        sys.exit(f"--only: expected names of {', '.join(table)}, found {', '.join(unknown)}")
    head = "| work | scalebench | PyTorch eager | ratio | compiled | ratio | memory | PyTorch's |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    print(*lines, sep="\n", flush=True)
    missed, about = [], "PyTorch did not run"
    with tempfile.TemporaryDirectory() as folder:
        configs = {"pocket": ROOT / "datasets/pocket/unet/config.json"}
        for name, config in (("sd15", SD15), ("sdxl", SDXL), ("vae", VAE)):
            configs[name] = Path(folder) / f"{name}.json"
            configs[name].write_text(json.dumps(config))
        for name in rows:
            what, kind, *_, least, compiled = row = table[name]
            if time.monotonic() - started > args.budget:
                print(f"| {what} | not begun: the budget of {args.budget:.0f} s is spent | | | | | | |", flush=True)
                continue
            if kind == "inception":
                configs[kind] = Path(folder) / "inception.safetensors"
                try:
                    inception_weights(configs[kind])
                except ImportError as error:
                    print(f"| {what} | not run: {error} | | | | | | |", flush=True)
                    continue
            a, memory_a, said = ours(row, configs[kind], args, device)
            b, memory_b, theirs_said = in_a_process(row, configs.get(kind), device, args.steps, False)
            about = theirs_said if b else about
            c = None
            if compiled and time.monotonic() - started < args.budget:
                c, _, compiled_said = in_a_process(row, configs.get(kind), device, args.steps, True)
                if c is None:
                    print(f"compiled: {compiled_said}", file=sys.stderr)
            rate = lambda v: f" ({row[3] / v:.1f} images/s)" if kind in ("vae", "inception") else ""
            seconds = lambda v, said: f"{v * 1e3:.2f} ms{rate(v)}" if v else said
            ratio = lambda v: f"**{v / a:.2f}**" if v and a else ""
            gigabytes = lambda v: f"{v / 1e9:.2f} GB" if v else ""
            line = (f"| {what} | {seconds(a, said)} | {seconds(b, theirs_said)} | {ratio(b)} | {seconds(c, '')} | {ratio(c)} | {gigabytes(memory_a)} "
                    f"| {gigabytes(memory_b)} |")
            lines.append(line)
            print(line, flush=True)
            if least and not (a and (b is None or b / a >= least)):
                missed.append(name)
    driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True) if not args.cpu else None
    driver = f", driver {driver.stdout.splitlines()[0]}" if driver and driver.stdout else ""
    lines += ["", f"{time.strftime('%Y-%m-%d')}, {about}{driver}; medians of {args.steps}."]
    print(*lines[-2:], sep="\n")
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n")
    if missed:
        sys.exit(f"slower than eager PyTorch where that must not be: {', '.join(missed)}")


if __name__ == "__main__":
    main()
