#!/usr/bin/env python3
"""Speed of the networks against PyTorch on this machine's CPU, in one alternating run.

    cargo build --release --workspace
    python scripts/bench_cpu.py [--repeats 5] [--only unet,vae] [--markdown TABLE.md]

Needs torch, diffusers, safetensors and pytorch-fid. Weights are random; the shapes are those of the
published networks (the configurations are written here), so nothing is downloaded.

Ours and theirs take turns (ours, theirs, ours, theirs, ...), so that a machine that is busy with other
things is busy for both; what counts is the ratio of the medians. Both run on --threads threads and are
warmed up by one untimed run in the same process. A process of ours lives for one measurement, theirs
for all of one row. Peak memory is the largest resident size of the process after warming up.

PyTorch runs diffusers' networks with scaled-dot-product attention, in the layout that is faster in a
trial (contiguous or channels-last), under inference mode. Re-dilation and noise-damped guidance follow
the procedure of the paper's code: a processor around each convolution (resize, dilate, resize), and two
U-Net calls of batch 2 for a damped step, the second with the lighter dilations.
"""

import argparse
import fnmatch
import json
import math
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = ROOT / "target/release/scalebench"

SD15 = {
    "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0,
    "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4,
    "sample_size": 64, "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SDXL = {
    **SD15, "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10], "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
# experiments/methods/scalecrafter.yaml, the variants for 4x and 16x of the pixels.
PRESET_4 = {"down_blocks.[123].*": 2, "mid_block.*": 2, "up_blocks.[012].*": 2}
PRESET_16 = {
    "down_blocks.1.*": 2, "down_blocks.2.*": 3, "down_blocks.3.*": 4, "mid_block.*": 4, "up_blocks.0.*": 4, "up_blocks.1.*": 3,
    "up_blocks.2.*": 2,
}
PRESET_16_WEAK = {"down_blocks.2.*": 3, "down_blocks.3.*": 4, "mid_block.*": 4, "up_blocks.0.*": 4, "up_blocks.1.*": 3}

# name: (what, configuration, latent side, dtype, method, dilations by pass, must, aim), the bounds those of Zen 4.
ROWS = {
    "unet-f32": ("SD 1.5 U-Net f32, batch 2, 64x64 latents", "sd15", 64, "f32", None, [{}], 1.6, 1.8),
    "unet-bf16": ("SD 1.5 U-Net bf16, batch 2, 64x64 latents", "sd15", 64, "bf16", None, [{}], 1.45, 1.6),
    "redilated": ("SD 1.5 U-Net f32, batch 2, 128x128 latents, re-dilated (4x preset)", "sd15", 128, "f32", "scalecrafter", [PRESET_4], 1.6, 1.9),
    "guided": ("guided step with noise-damped guidance, pocket U-Net, 64x64 latents (16x preset)", "pocket", 64, "f32", "scalecrafter",
               [PRESET_16, PRESET_16_WEAK], 3.0, 4.0),
    "vae": ("SD 1.5 VAE decode, 512x512", "vae", 64, "f32", None, None, 1.6, 2.0),
    "inception": ("FID Inception features, 32 images of 299x299", "inception", 299, "f32", None, None, 1.5, 1.8),
    "unet-128": ("SD 1.5 U-Net f32, batch 2, 128x128 latents", "sd15", 128, "f32", None, [{}], None, None),
    "unet-128-bf16": ("SD 1.5 U-Net bf16, batch 2, 128x128 latents", "sd15", 128, "bf16", None, [{}], None, None),
    "redilated-bf16": ("SD 1.5 U-Net bf16, batch 2, 128x128 latents, re-dilated (4x preset)", "sd15", 128, "bf16", "scalecrafter", [PRESET_4],
                       None, None),
    "sdxl-bf16": ("SDXL U-Net bf16, batch 2, 64x64 latents", "sdxl", 64, "bf16", None, [{}], 1.3, 1.5),
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", default=",".join(ROWS), help="rows, of " + ", ".join(ROWS))
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    return parser.parse_args()


def memory(reset=False):
    """Largest resident size in bytes since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status).group(1))


def redilate(unet, dilations):
    """Makes the 3x3 convolutions that the patterns name run as the paper's code does; returns what undoes it."""
    import torch
    import torch.nn.functional as F

    undo = []
    for name, module in unet.named_modules():
        factor = next((f for pattern, f in dilations.items() if fnmatch.fnmatchcase(name, pattern)), None)
        if factor is None or not isinstance(module, torch.nn.Conv2d) or module.kernel_size != (3, 3):
            continue

        def forward(x, module=module, factor=factor):
            d = math.ceil(factor)
            h, w = x.shape[-2] // module.stride[0], x.shape[-1] // module.stride[1]
            x = F.interpolate(x, scale_factor=d / factor, mode="bilinear")
            y = F.conv2d(x, module.weight, module.bias, module.stride, d, d)
            return F.interpolate(y, size=(h, w), mode="bilinear")

        module.forward = forward
        undo.append(module)
    return undo


def inception_weights(path):
    """pytorch-fid's network on random weights, under the names of the published file."""
    import torch
    from pytorch_fid import inception
    from safetensors.torch import save_file

    inception.load_state_dict_from_url = lambda *a, **k: None
    network = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    network.Mixed_5b = inception.FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = inception.FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = inception.FIDInceptionA(288, pool_features=64)
    network.Mixed_6b = inception.FIDInceptionC(768, channels_7x7=128)
    network.Mixed_6c = inception.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6d = inception.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6e = inception.FIDInceptionC(768, channels_7x7=192)
    network.Mixed_7b = inception.FIDInceptionE_1(1280)
    network.Mixed_7c = inception.FIDInceptionE_2(2048)
    state = {k: v.float().contiguous() for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    if path:
        save_file(state, path)
    return network


def theirs(row, config, threads, pipe):
    """The other process: prepares a row, then runs it whenever it is told to."""
    import logging
    import warnings

    import torch

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    what, kind, side, dtype, _, passes, _, _ = ROWS[row]
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    with torch.inference_mode():
        if kind == "inception":
            network = inception_weights(None).eval()
            x = torch.rand(32, 3, side, side) * 2 - 1
            stages = [module for name, module in network.named_children() if name not in ("AuxLogits", "avgpool", "dropout", "fc")]

            def features(x):
                for stage in stages:
                    x = stage(x)
                return x.mean((2, 3))

            run = lambda: features(x)
        elif kind == "vae":
            from diffusers import AutoencoderKL

            network = AutoencoderKL.from_config({k: v for k, v in VAE.items()}).eval()
            x = torch.randn(1, 4, side, side)
            run = lambda: network.decode(x).sample
        else:
            from diffusers import UNet2DConditionModel

            network = UNet2DConditionModel.from_config(json.loads(Path(config).read_text())).to(dtype).eval()
            text = torch.randn(2, 77, network.config.cross_attention_dim, dtype=dtype)
            x = torch.randn(2, 4, side, side, dtype=dtype)
            added = {}
            if network.config.addition_embed_type:
                added = {"added_cond_kwargs": {"text_embeds": torch.randn(2, 1280, dtype=dtype), "time_ids": torch.full((2, 6), 1024, dtype=dtype)}}

            def run():
                for dilations in passes:
                    changed = redilate(network, dilations)
                    network(x, 981, text, **added)
                    for module in changed:
                        del module.forward

        best = None
        for layout in (torch.contiguous_format, torch.channels_last):
            network.to(memory_format=layout)
            run()
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            if best is None or seconds < best[0]:
                best = (seconds, layout)
        network.to(memory_format=best[1])
        run()
        memory(reset=True)
        pipe.send(torch.__version__)
        while pipe.recv():
            start = time.perf_counter()
            run()
            pipe.send((time.perf_counter() - start, memory()))


def ours(row, config, threads):
    _, kind, side, dtype, method, *_ = ROWS[row]
    command = [BINARY, "bench", {"vae": "vae", "inception": "inception"}.get(kind, "unet"), "--json", "--steps", "1"]
    if kind == "inception":
        command += ["--weights", config, "--batch", "32"]
    elif kind == "vae":
        command += ["--config", config, "--size", f"{side}x{side}"]
    else:
        command += ["--config", config, "--size", f"{side}x{side}", "--batch", "2", "--dtype", dtype]
        command += ["--method", method] if method else []
    found = json.loads(subprocess.run(command, check=True, capture_output=True, env={**os.environ, "RAYON_NUM_THREADS": str(threads)}).stdout)
    return found["seconds"], found["peak_memory_bytes"]


def main():
    args = parse()
    rows = args.only.split(",")
    if unknown := set(rows) - set(ROWS):
        sys.exit(f"--only: expected names of {', '.join(ROWS)}, found {', '.join(unknown)}")
    lines = ["| work | scalebench | PyTorch | ratio | must | aim | memory | PyTorch's |", "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    print(*lines, sep="\n", flush=True)
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        configs = {"pocket": ROOT / "datasets/pocket/unet/config.json"}
        for name, config in (("sd15", SD15), ("sdxl", SDXL), ("vae", VAE)):
            configs[name] = Path(folder) / f"{name}.json"
            configs[name].write_text(json.dumps(config))
        for row in rows:
            what, kind, *_, must, aim = ROWS[row]
            if kind == "inception":
                configs[kind] = Path(folder) / "inception.safetensors"
                inception_weights(configs[kind])
            context = multiprocessing.get_context("spawn")
            mine, other = context.Pipe()
            process = context.Process(target=theirs, args=(row, configs.get(kind), args.threads, other), daemon=True)
            process.start()
            other.close()
            version = mine.recv()
            results = ([], [])
            for _ in range(args.repeats):
                results[0].append(ours(row, configs[kind], args.threads))
                mine.send(True)
                results[1].append(mine.recv())
            mine.send(False)
            process.join()
            (a, b), (memory_a, memory_b) = ([statistics.median(r[i] for r in side) for side in results] for i in (0, 1))
            spread = [f"{min(r[0] for r in side):.3g} to {max(r[0] for r in side):.3g}" for side in results]
            bound = lambda v: "" if v is None else f"{v:.1f}"
            line = (f"| {what} | {a:.3g} s ({spread[0]}) | {b:.3g} s ({spread[1]}) | **{b / a:.2f}** | {bound(must)} | {bound(aim)} "
                    f"| {memory_a / 1e9:.2f} GB | {memory_b / 1e9:.2f} GB |")
            lines.append(line)
            print(line, flush=True)
            if must and b / a < must:
                missed.append(row)
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    lines += ["", f"{args.threads} threads of {model.group(1) if model else 'an unknown CPU'}, PyTorch {version}, medians of {args.repeats}, alternating."]
    print(*lines[-2:], sep="\n")
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n")
    if missed:
        sys.exit(f"below what must be reached: {', '.join(missed)}")


if __name__ == "__main__":
    main()
