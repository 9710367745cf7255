#!/usr/bin/env python3
"""Writes a tiny checkpoint of the x4 upscaler's layout with random weights, and what diffusers makes of it.

    python scripts/upscaler_goldens.py crates/generation/tests/data

`models/tiny-upscaler` has tiny-sd21's text encoder and tokenizer. `upscaler/unet` holds U-Net calls at several sizes, timesteps and
noise levels with every block's output of one; `upscaler/loop_*` whole runs of `StableDiffusionUpscalePipeline`, f32, CPU, one thread,
noise from a seeded generator, which `torch.randn` on the CPU is for scalebench, too. Needs torch, diffusers, transformers.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

UNET = dict(
    sample_size=16, in_channels=7, out_channels=4, layers_per_block=2, block_out_channels=(8, 16, 24, 24),
    down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3, up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
    only_cross_attention=(True, True, True, False), num_class_embeds=1000, use_linear_projection=True,
    cross_attention_dim=32, attention_head_dim=4, norm_num_groups=4,
)
VAE = dict(in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, block_out_channels=(8, 16, 16), norm_num_groups=4,
           down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, sample_size=32, scaling_factor=0.08333)
BETAS = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="scaled_linear")
PROMPT, NEGATIVE = "a corgi wearing a tiny hat", "blurry, low quality, watermark"


def randomise(model, generator):
    """Weights of about unit gain, so that a mistake anywhere moves the result."""
    with torch.no_grad():
        for key, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in key:
                p.copy_((1 if key.endswith("weight") else 0) + 0.1 * noise)
            elif "class_embedding" in key:
                p.copy_(noise)
            else:
                p.copy_(noise * (0.1 if p.ndim == 1 else p[0].numel() ** -0.5))
    return model.eval()


def checkpoint(data):
    out, generator = data / "models" / "tiny-upscaler", torch.Generator().manual_seed(19)
    for name, model in [("unet", UNet2DConditionModel(**UNET)), ("vae", AutoencoderKL(**VAE))]:
        randomise(model, generator).save_pretrained(out / name)
    for part in ["text_encoder", "tokenizer"]:
        shutil.copytree(data / "models" / "tiny-sd21" / part, out / part, dirs_exist_ok=True)
    DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction", **BETAS).save_config(out / "scheduler")
    DDPMScheduler(**BETAS).save_config(out / "low_res_scheduler")
    index = dict(_class_name="StableDiffusionUpscalePipeline", max_noise_level=350, low_res_scheduler=["diffusers", "DDPMScheduler"],
                 scheduler=["diffusers", "DDIMScheduler"], text_encoder=["transformers", "CLIPTextModel"], tokenizer=["transformers", "CLIPTokenizer"],
                 unet=["diffusers", "UNet2DConditionModel"], vae=["diffusers", "AutoencoderKL"])
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return out


@torch.no_grad()
def unet_calls(pipe, out):
    generator, tensors = torch.Generator().manual_seed(5), {}
    for i, (h, w, t, level) in enumerate([(16, 16, 981, 20), (16, 24, 501, 0), (24, 16, 1, 350), (13, 18, 741, 999), (32, 32, 121, 100)]):
        x, text = torch.randn((2, 7, h, w), generator=generator), torch.randn((2, 9, 32), generator=generator)
        hooks = []
        if i == 0:
            names = ["conv_in", "time_embedding", "mid_block", "conv_out"] + [f"{d}_blocks.{k}" for d in ("down", "up") for k in range(4)]
            first = lambda y: y[0] if isinstance(y, tuple) else y
            hooks = [pipe.unet.get_submodule(n).register_forward_hook(lambda _, __, y, n=n: tensors.update({f"tap.{n}": first(y)})) for n in names]
        y = pipe.unet(x, t, text, class_labels=torch.tensor([level] * 2)).sample
        [hook.remove() for hook in hooks]
        tensors |= {f"{i}.x": x, f"{i}.context": text, f"{i}.out": y, f"{i}.at": torch.tensor([t, level], dtype=torch.float32)}
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, out / "unet.safetensors")


@torch.no_grad()
def loop(pipe, out, name, size, **settings):
    """A whole run; `image` are the small image's bytes."""
    h, w = size
    grid = np.mgrid[0:h, 0:w]
    image = np.stack([(17 * grid[0] + 5 * grid[1] + 60 * c + grid[0] * grid[1] // (c + 1)) % 256 for c in range(3)], -1).astype(np.uint8)
    tensors = {"image": torch.from_numpy(image.astype(np.float32))}
    noised = pipe.low_res_scheduler.add_noise
    pipe.low_res_scheduler.add_noise = lambda *a: tensors.setdefault("beside", noised(*a))
    text = pipe.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
    tensors |= {"text.cond": text[0], "text.uncond": text[1]}
    seen = lambda i, t, x: tensors.update({f"latents.{i}": x.clone()})
    found = pipe(PROMPT, Image.fromarray(image), negative_prompt=NEGATIVE, generator=torch.Generator().manual_seed(7), callback=seen, output_type="np", **settings)
    tensors["result"] = torch.from_numpy(found.images[0])
    pipe.low_res_scheduler.add_noise = noised
    save_file({k: v.float().contiguous() for k, v in tensors.items()}, out / f"{name}.safetensors", metadata={"spec": json.dumps(settings)})
    print(name, "rms of the last latents", tensors[max((k for k in tensors if k.startswith("latents")), key=lambda k: int(k.split(".")[1]))].square().mean().sqrt())


def main():
    torch.set_num_threads(1)
    data = Path(sys.argv[1])
    folder, out = checkpoint(data), data / "upscaler"
    out.mkdir(exist_ok=True)
    pipe = StableDiffusionUpscalePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    unet_calls(pipe, out)
    loop(pipe, out, "loop_guided", (16, 24), num_inference_steps=6, guidance_scale=9.0, noise_level=20, eta=0.0)
    loop(pipe, out, "loop_noisy", (24, 20), num_inference_steps=5, guidance_scale=1.0, noise_level=300, eta=0.5)


if __name__ == "__main__":
    main()
