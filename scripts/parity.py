#!/usr/bin/env python3
"""Compares `scalebench generate --trace` with diffusers, stage by stage, on any checkpoint folder.

    python scripts/parity.py --checkpoint DIR --prompt TEXT [--size 512x512] [--steps 4] [--sampler ddim] [--eta 1]
                             [--guidance-scale 7.5] [--negative-prompt TEXT] [--seed 0] [--variant fp16]

Runs scalebench (plain network, `direct-inf`), then the same run with diffusers' own modules on the noise that scalebench
drew, in f32 on the CPU, and prints for every stage the largest difference over the root mean square of diffusers' values.
Each stage is given scalebench's own input to it: differences do not add up from stage to stage.
Needs torch, diffusers, transformers, safetensors, pillow. Exit status 1 if a stage is above --tolerance.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

SCHEDULERS = {
    "ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "pndm": "PNDMScheduler", "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler", "dpm++2m": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler",
}
COMPONENTS = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--size", default="512x512", help="WxH in pixels")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--sampler", choices=sorted(SCHEDULERS), default="ddim")
    parser.add_argument("--eta", type=float)
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--scalebench", default=str(Path(__file__).parent.parent / "target" / "release" / "scalebench"))
    return parser.parse_args()


def ours(args, folder):
    trace, image = folder / "trace.safetensors", folder / "image.png"
    command = [args.scalebench, "generate", "--checkpoint", args.checkpoint, "--prompt", args.prompt, "--negative-prompt", args.negative_prompt,
               "--size", args.size, "--steps", args.steps, "--sampler", args.sampler, "--guidance-scale", args.guidance_scale, "--seed", args.seed,
               "--trace", trace, "--out", image]
    command += ["--eta", args.eta] if args.eta is not None else []
    command += ["--variant", args.variant] if args.variant else []
    start = time.time()
    subprocess.run([str(c) for c in command], check=True)
    return load_file(trace), np.asarray(Image.open(image)), time.time() - start


class Theirs:
    """diffusers' modules, loaded one after the other and dropped when done, so that the largest fits."""

    def __init__(self, args):
        self.args, self.index = args, json.load(open(args.checkpoint / "model_index.json"))
        self.xl = "text_encoder_2" in self.index

    def load(self, library, cls, name):
        more = dict(variant=self.args.variant) if self.args.variant else {}
        model = getattr(library, cls).from_pretrained(self.args.checkpoint / name, torch_dtype=torch.float32, **more)
        return model.float().eval()

    def text(self, prompt, negative):
        import transformers

        zero = negative and prompt == "" and self.xl and self.index.get("force_zeros_for_empty_prompt", True)
        states, pooled = [], None
        for suffix in ["", "_2"] if self.xl else [""]:
            tokenizer = transformers.CLIPTokenizer.from_pretrained(str(self.args.checkpoint / f"tokenizer{suffix}"))
            encoder = self.load(transformers, COMPONENTS[f"text_encoder{suffix}"], f"text_encoder{suffix}")
            ids = tokenizer(prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt").input_ids
            out = encoder(ids, output_hidden_states=True)
            states.append(out.hidden_states[-2] if self.xl else out.last_hidden_state)
            pooled = out.text_embeds if suffix else None
        hidden = torch.cat(states, -1)
        return (torch.zeros_like(hidden), torch.zeros_like(pooled)) if zero else (hidden, pooled)


@torch.no_grad()
def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    import diffusers

    rows = []

    def compare(stage, got, want):
        got, want = got.double(), want.double()
        rows.append((stage, ((got - want).abs().max() / want.square().mean().sqrt().clamp(min=1e-12)).item()))

    with tempfile.TemporaryDirectory() as folder:
        trace, image, seconds = ours(args, Path(folder))
    start = time.time()
    theirs = Theirs(args)
    cond, cond_pooled = theirs.text(args.prompt, False)
    uncond, uncond_pooled = theirs.text(args.negative_prompt, True)
    compare("text, prompt", trace["text.cond"], cond)
    compare("text, negative prompt", trace["text.uncond"], uncond)
    if theirs.xl:
        compare("pooled text", trace["text.cond_pooled"], cond_pooled)

    scheduler = getattr(diffusers, SCHEDULERS[args.sampler]).from_pretrained(args.checkpoint / "scheduler")
    scheduler.set_timesteps(args.steps)
    module = sys.modules[type(scheduler).__module__]
    drawn = iter(trace["noise"]) if "noise" in trace else iter(())
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = lambda *_, **__: next(drawn)
    width, height = map(int, args.size.split("x"))
    unet = theirs.load(diffusers, "UNet2DConditionModel", "unet")
    text, added = torch.cat([uncond, cond]), {}
    if theirs.xl:
        sizes = torch.tensor([[height, width, 0, 0, height, width]] * 2, dtype=torch.float32)
        added = dict(added_cond_kwargs=dict(text_embeds=torch.cat([uncond_pooled, cond_pooled]), time_ids=sizes))
    eta = dict(eta=1.0 if args.eta is None else args.eta) if args.sampler == "ddim" else {}
    # Every stage gets scalebench's own input, so that each row is that stage's difference alone.
    x = trace["init_latents"] * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        shown = scheduler.scale_model_input(torch.cat([x, x]), t)
        prediction = unet(shown, t, text, **added, return_dict=False)[0]
        compare(f"step {i}: U-Net, negative prompt", trace[f"pass0.{i}"], prediction[:1])
        compare(f"step {i}: U-Net, prompt", trace[f"pass1.{i}"], prediction[1:])
        empty, told = trace[f"pass0.{i}"], trace[f"pass1.{i}"]
        compare(f"step {i}: guided", trace[f"guided.{i}"], empty + args.guidance_scale * (told - empty))
        compare(f"step {i}: latents", trace[f"latents.{i}"], scheduler.step(trace[f"guided.{i}"], t, x, **eta, return_dict=False)[0])
        x = trace[f"latents.{i}"]
    del unet
    vae = theirs.load(diffusers, "AutoencoderKL", "vae")
    pixels = vae.decode(x / vae.config.scaling_factor, return_dict=False)[0]
    pixels = ((pixels[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    off = np.abs(pixels.astype(int) - image.astype(int))

    print("| stage | largest difference / rms |\n| --- | --- |")
    for stage, value in rows:
        print(f"| {stage} | {value:.1e} |")
    print(f"| PNG | {off.max()} of 255 at most, {(off > 0).mean():.2%} of values differ |")
    print(f"\nscalebench {seconds:.0f} s, diffusers {time.time() - start:.0f} s, both with loading; torch {torch.__version__}, diffusers {diffusers.__version__}")
    worst = max(value for _, value in rows)
    if worst > args.tolerance:
        sys.exit(f"above the tolerance: {worst:.1e} > {args.tolerance:.0e}")


if __name__ == "__main__":
    main()
