"""Self-Cascade without tuning, by diffusers' modules and the facts of the official pipeline: an oracle, the loop is written here."""

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionXLPipeline

from common import NEGATIVE, PROMPT, Run, embedded, guided, pipe


@torch.no_grad()
def self_cascade_sdxl(models, checkouts):
    run = Run(model="sdxl", prompt=PROMPT, negative_prompt=NEGATIVE, width=512, height=512, steps=10, guidance_scale=7.5, sampler="ddim", eta=0.0)
    p = pipe(StableDiffusionXLPipeline, models / "tiny-sdxl", DDIMScheduler)
    texts, pooled = embedded(p, True)
    p.scheduler.set_timesteps(10)
    x = run.draw(1, 4, 32, 32)
    for i, t in enumerate(p.scheduler.timesteps):
        x = p.scheduler.step(guided(p, x, t, texts, pooled, 7.5, (256, 256)), t, x, eta=0.0).prev_sample
        run.latents(0, i, x)
    # Strength 0.7: the first three steps are left out.
    first = 10 - int(10 * 0.7)
    x = F.interpolate(x, scale_factor=2, mode="bilinear")
    x = p.scheduler.add_noise(x, run.draw(1, 4, 64, 64), p.scheduler.timesteps[first:first + 1])
    for i, t in list(enumerate(p.scheduler.timesteps))[first:]:
        x = p.scheduler.step(guided(p, x, t, texts, pooled, 7.5, (512, 512)), t, x, eta=0.0).prev_sample
        run.latents(1, i, x)
    run.tensors["final_latents"] = x
    return run
