"""DemoFusion by PRIS-CV/DemoFusion at 5024487355506ad0278f993aaa97d35b1bc482f3: jitter from the seeded stream, noise from `draws`, on the CPU."""

import sys
import types

import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline

from common import NEGATIVE, PROMPT, Dice, Run, Torch


def demofusion_sdxl(models, checkouts):
    sys.path.insert(0, str(checkouts / "DemoFusion"))
    import pipeline_demofusion_sdxl as code

    run = Run(model="sdxl", prompt=PROMPT, negative_prompt=NEGATIVE, width=512, height=512, steps=5, guidance_scale=7.5, sampler="ddim", eta=0.0,
              seed=9, sigma=0.8)
    base = StableDiffusionXLPipeline.from_pretrained(models / "tiny-sdxl")
    p = code.DemoFusionSDXLPipeline(vae=base.vae, text_encoder=base.text_encoder, text_encoder_2=base.text_encoder_2, tokenizer=base.tokenizer,
                                    tokenizer_2=base.tokenizer_2, unet=base.unet, scheduler=DDIMScheduler.from_pretrained(models / "tiny-sdxl", subfolder="scheduler"))
    p.set_progress_bar_config(disable=True)
    state = {"step": -1, "dice": None, "stage": 0}
    get_views = p.get_views

    def views(*given, **named):
        state["step"] += 1
        state["dice"] = Dice(9, 1, state["step"])
        return get_views(*given, **named)

    p.get_views = views
    code.random = types.SimpleNamespace(randint=lambda a, b: a + state["dice"].below(b - a + 1))

    # The result of every step of the second phase.
    where = torch.where

    def after(condition, a, b):
        found = where(condition, a, b)
        run.latents(1, state["step"], found)
        return found

    code.torch = Torch(randn_like=lambda x: run.draw(*x.shape), where=after)
    if not hasattr(p.scheduler, "_init_step_index"):
        p.scheduler._init_step_index = lambda t: None
    images = p(PROMPT, negative_prompt=NEGATIVE, height=512, width=512, num_inference_steps=5, guidance_scale=7.5, eta=0.0, view_batch_size=4,
               stride=16, sigma=0.8, latents=run.draw(1, 4, 32, 32), output_type="latent", multi_decoder=False)
    run.latents(0, 4, images[0][None] if images[0].ndim == 3 else images[0])
    run.tensors["final_latents"] = images[-1][None] if images[-1].ndim == 3 else images[-1]
    return run
