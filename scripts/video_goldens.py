#!/usr/bin/env python3
"""Writes the tiny video networks of `crates/generation/tests/data/models` and what diffusers makes of them.

    python scripts/video_goldens.py [DATA_DIR]

DATA_DIR (default: crates/generation/tests/data) holds `models/tiny-sd15`, whose text encoder, autoencoder and, under the motion
adapter, U-Net are used. Written: `models/tiny-motion-adapter`, `models/tiny-modelscope` (U-Net and scheduler) and `video/*`.
Needs torch and diffusers.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AnimateDiffPipeline, AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_synth import TextToVideoSDPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

PROMPT = "A Corgi dog riding a bike in Times Square, wearing sunglasses and a beach hat"
GRADED = {"down_blocks.1": 2.0, "down_blocks.2": 2.5, "mid_block": 3.0, "up_blocks.1": 2.5, "up_blocks.2": 2.0}
BETAS = dict(beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1, set_alpha_to_one=False)


def randomise(model, seed):
    """Weights that keep activations of order one, exactly representable in half precision; no layer is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() > 1:
                value = noise / p[0].numel() ** 0.5
            else:
                value = 0.2 * noise + (1 if key.endswith("weight") else 0)
            p.copy_(value.half().float())
    return model.eval()


def save(model, folder):
    model.save_pretrained(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    # The table of positions is no parameter: it stays as it is.
    save_file({k: v if k.endswith(".pe") else v.half() for k, v in load_file(file).items()}, file, metadata={"format": "pt"})


def redilated(model, factors):
    """Patches the 3×3 convolutions below the named modules as ScaleCrafter's equation 3 has them."""

    def patch(conv, factor):
        dilation = -(-factor // 1)

        def forward(x):
            h, w = x.shape[-2:]
            size = lambda n: round(n * (dilation / factor))
            if dilation != factor:
                x = F.interpolate(x, size=(size(h), size(w)), mode="bilinear")
            d = int(dilation)
            y = F.conv2d(x, conv.weight, conv.bias, stride=conv.stride, padding=d, dilation=d)
            stride = conv.stride[0]
            return y if y.shape[-2:] == (h // stride, w // stride) else F.interpolate(y, size=(h // stride, w // stride), mode="bilinear")

        conv.forward = forward

    n = 0
    for name, module in model.named_modules():
        block = ".".join(name.split(".")[: 1 if name.startswith("mid") else 2])
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3) and block in factors:
            patch(module, factors[block])
            n += 1
    assert n > 10
    return model


def network(unet, cases, width=32):
    tensors, generator = {}, torch.Generator().manual_seed(7)
    for name, (batch, frames, h, w, t) in cases.items():
        sample = torch.randn((batch, 4, frames, h, w), generator=generator)
        context = torch.randn((batch, 77, width), generator=generator)
        with torch.no_grad():
            # AnimateDiff's pipeline repeats the text for every frame, ModelScope's network does it itself.
            told = context.repeat_interleave(frames, 0) if isinstance(unet, UNetMotionModel) else context
            out = unet(sample, t, encoder_hidden_states=told).sample
        tensors |= {f"{name}.sample": sample, f"{name}.context": context, f"{name}.out": out}
    return tensors


def loop(pipe, eta, seed, frames, size, modelscope):
    """A guided run: what is drawn, each step's latents, the frames in [-1, 1]."""
    tensors, latents = {}, []
    prepare = pipe.prepare_latents

    def prepared(*args, **kwargs):
        tensors["init_latents"] = prepare(*args, **kwargs).clone()
        return tensors["init_latents"].clone()

    pipe.prepare_latents = prepared
    more = dict(num_frames=frames, height=size[0], width=size[1], num_inference_steps=6, guidance_scale=7.5, eta=eta,
                generator=torch.Generator().manual_seed(seed), output_type="latent")
    with torch.no_grad():
        if modelscope:
            final = pipe(PROMPT, callback=lambda i, t, x: latents.append(x.clone()), **more).frames
        else:
            keep = lambda pipe, i, t, kept: latents.append(kept["latents"].clone()) or {}
            final = pipe(PROMPT, callback_on_step_end=keep, **more).frames
    tensors |= {f"latents.{i}": x for i, x in enumerate(latents) if i in (0, 1, 5)}
    if eta == 0:
        with torch.no_grad():
            tensors["frames"] = pipe.decode_latents(final)
    assert len(latents) == 6
    return tensors


def contiguous(tensors):
    return {k: v.contiguous() for k, v in tensors.items()}


def main(data):
    torch.set_num_threads(1)
    sd15, out = data / "models" / "tiny-sd15", data / "video"
    out.mkdir(exist_ok=True)
    base = UNet2DConditionModel.from_pretrained(sd15 / "unet")
    groups = base.config.norm_num_groups
    adapter = MotionAdapter(block_out_channels=base.config.block_out_channels, motion_num_attention_heads=4, motion_norm_num_groups=groups,
                            motion_max_seq_length=8, use_motion_mid_block=True)
    save(randomise(adapter, 1), data / "models" / "tiny-motion-adapter")
    volume = UNet3DConditionModel(sample_size=32, block_out_channels=(8, 16, 24, 24), layers_per_block=2, norm_num_groups=groups,
                                  cross_attention_dim=32, attention_head_dim=4)
    folder = data / "models" / "tiny-modelscope"
    save(randomise(volume, 2), folder / "unet")
    scheduler = dict(BETAS, beta_schedule="scaled_linear")
    DDIMScheduler(**scheduler).save_pretrained(folder / "scheduler")

    adapter = MotionAdapter.from_pretrained(data / "models" / "tiny-motion-adapter")
    motion = UNetMotionModel.from_unet2d(base, adapter).eval()
    volume = UNet3DConditionModel.from_pretrained(folder / "unet").eval()
    cases = {"f5": (2, 5, 16, 12, 981), "f1": (1, 1, 8, 8, 1), "odd": (1, 3, 10, 14, 501), "f8": (1, 8, 8, 8, 261)}
    dilated = {"dilated": (2, 3, 24, 16, 701)}
    save_file(contiguous(network(motion, cases) | network(redilated(motion, GRADED), dilated)), out / "unet_motion.safetensors")
    save_file(contiguous(network(volume, cases) | network(redilated(volume, GRADED), dilated)), out / "unet_modelscope.safetensors")

    text, tokenizer = CLIPTextModel.from_pretrained(sd15 / "text_encoder"), CLIPTokenizer.from_pretrained(sd15 / "tokenizer")
    vae = AutoencoderKL.from_pretrained(sd15 / "vae")
    linear = DDIMScheduler(**BETAS, beta_schedule="linear", timestep_spacing="linspace")
    fresh = lambda: UNetMotionModel.from_unet2d(UNet2DConditionModel.from_pretrained(sd15 / "unet"), adapter).eval()
    for eta in (0.0, 1.0):
        pipe = AnimateDiffPipeline(vae, text, tokenizer, fresh(), adapter, linear)
        save_file(contiguous(loop(pipe, eta, 31, 5, (64, 96), False)), out / f"loop_motion_eta{int(eta)}.safetensors")
        pipe = TextToVideoSDPipeline(vae, text, tokenizer, UNet3DConditionModel.from_pretrained(folder / "unet").eval(), DDIMScheduler(**scheduler))
        save_file(contiguous(loop(pipe, eta, 32, 4, (64, 80), True)), out / f"loop_modelscope_eta{int(eta)}.safetensors")
    for file in sorted(data.glob("models/tiny-mo*/**/*")) + sorted(out.iterdir()):
        if file.is_file():
            print(file.relative_to(data), file.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "crates" / "generation" / "tests" / "data")
