"""Upsample Guidance: no code is published; an oracle of equation 9 of arXiv 2404.01709."""

import math

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline

from common import NEGATIVE, PROMPT, Run, embedded, guided, pipe


@torch.no_grad()
def upsample_guidance_sd15(models, checkouts):
    theta, eta, m = 0.8, 0.5, 2
    run = Run(model="sd15", prompt=PROMPT, negative_prompt=NEGATIVE, width=512, height=512, steps=6, guidance_scale=7.5, sampler="ddim", eta=0.0,
              upsample_guidance={"theta": theta, "eta": eta})
    p = pipe(StableDiffusionPipeline, models / "tiny-sd15", DDIMScheduler)
    texts, _ = embedded(p, False)
    p.scheduler.set_timesteps(6)
    alphas = p.scheduler.alphas_cumprod.double()
    snr = (alphas / (1 - alphas)).log()
    x = run.draw(1, 4, 64, 64)
    for i, t in enumerate(p.scheduler.timesteps):
        e = guided(p, x, t, texts, None, 7.5, None)
        if t >= (1 - eta) * 1000:
            a = alphas[t].item()
            tau = (snr - (snr[t] + math.log(m * m))).abs().argmin()
            power = a + (1 - a) / m ** 2
            low = guided(p, F.avg_pool2d(x, m) / math.sqrt(power), tau, texts, None, 7.5, None)
            e = e + theta * F.interpolate(low / m - F.avg_pool2d(e, m), scale_factor=m, mode="nearest")
        x = p.scheduler.step(e, t, x, eta=0.0).prev_sample
        run.latents(0, i, x)
    run.tensors["final_latents"] = x
    return run
