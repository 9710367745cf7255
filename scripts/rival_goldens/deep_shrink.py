"""Deep Shrink ("Kohya hires fix") by diffusers' modules and what ComfyUI's node `PatchModelAddDownscale` (comfy_extras/nodes_model_downscale.py,
commit 048426796c7330fc901cf1638f9895a1ffe300c5) does: an oracle, since the node needs ComfyUI's own network. Block 3, after the skip connection,
bicubic, until 35 % of the schedule are its defaults; its factor of 2 is 1.7 here, so that sides are rounded."""

import diffusers.models.unets.unet_2d_blocks as blocks
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline

from common import NEGATIVE, PROMPT, Run, Torch, embedded, guided, pipe


@torch.no_grad()
def deep_shrink_sd15(models, checkouts):
    factor, end = 1.7, 0.35
    run = Run(model="sd15", prompt=PROMPT, negative_prompt=NEGATIVE, width=448, height=352, steps=6, guidance_scale=7.5, sampler="ddim", eta=0.0)
    p = pipe(StableDiffusionPipeline, models / "tiny-sd15", DDIMScheduler)
    texts, _ = embedded(p, False)
    p.scheduler.set_timesteps(6)
    # Every upsampler takes the next skip connection's size.
    p.unet.num_upsamplers += 12
    now = {}

    def shrink(module, inputs, output):
        hidden, skips = output
        if now["t"] >= (1 - end) * 999:
            size = [round(side * (1.0 / factor)) for side in hidden.shape[2:]]
            hidden = F.interpolate(hidden, size=size, mode="bicubic")
        return hidden, skips

    def join(tensors, dim):
        hidden, skip = tensors
        if hidden.shape[2:] != skip.shape[2:]:
            hidden = F.interpolate(hidden, size=skip.shape[2:], mode="bicubic")
        return torch.cat([hidden, skip], dim=dim)

    p.unet.down_blocks[0].register_forward_hook(shrink)
    own, blocks.torch = blocks.torch, Torch(cat=join)
    x = run.draw(1, 4, 44, 56)
    for i, t in enumerate(p.scheduler.timesteps):
        now["t"] = t.item()
        x = p.scheduler.step(guided(p, x, t, texts, None, 7.5, None), t, x, eta=0.0).prev_sample
        run.latents(0, i, x)
    blocks.torch = own
    run.tensors["final_latents"] = x
    return run
