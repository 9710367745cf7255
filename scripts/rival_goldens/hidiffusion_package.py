"""HiDiffusion by `hidiffusion` 0.1.10 from PyPI: thresholds so that every part acts in six steps; shifts from the seeded stream."""

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from common import NEGATIVE, PROMPT, Dice, Run, Torch, pipe


def hidiffusion(models, model, kind, thresholds, aggressive):
    import hidiffusion.hidiffusion as code

    for key in ["sd15_1024", "sdxl_2048"]:
        code.switching_threshold_ratio_dict[key] = thresholds
    code.is_aggressive_raunet = aggressive
    run = Run(model=model, prompt=PROMPT, negative_prompt=NEGATIVE, width=512, height=448, steps=6, guidance_scale=7.5, sampler="ddim", eta=0.0,
              seed=5, **thresholds)
    p = pipe(kind, models / f"tiny-{model}", DDIMScheduler)
    p.config["_name_or_path"] = p._name_or_path = {"sd15": "runwayml/stable-diffusion-v1-5", "sdxl": "stabilityai/stable-diffusion-xl-base-1.0"}[model]
    code.apply_hidiffusion(p)
    # One draw for each transformer block in windows, in the order in which they run.
    stream = {"step": 0, "dice": Dice(5, 0, 0)}

    code.torch = Torch(rand=lambda n: torch.tensor([(stream["dice"].below(4) + 0.5) / 4]))

    def seen(_, i, t, kept):
        run.latents(0, i, kept["latents"])
        stream["dice"] = Dice(5, 0, i + 1)
        return kept

    out = p(PROMPT, negative_prompt=NEGATIVE, width=512, height=448, num_inference_steps=6, guidance_scale=7.5, eta=0.0,
            latents=run.draw(1, 4, 56, 64), output_type="latent", callback_on_step_end=seen)
    run.tensors["final_latents"] = out.images
    return run


def hidiffusion_sd15(models, checkouts):
    return hidiffusion(models, "sd15", StableDiffusionPipeline, {"T1_ratio": 0.7, "T2_ratio": 0.34}, False)


def hidiffusion_sdxl(models, checkouts):
    return hidiffusion(models, "sdxl", StableDiffusionXLPipeline, {"T1_ratio": 0.7, "T2_ratio": 0.34}, False)
