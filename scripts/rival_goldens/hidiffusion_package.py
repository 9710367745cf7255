"""HiDiffusion by `hidiffusion` 0.1.10 from PyPI: thresholds so that every part acts in few steps; shifts from the seeded stream, where the
package draws them unseeded. The package looks for a module of older diffusers, for ControlNets alone, and for the checkpoint's name on the
hub; both are given to it."""

import sys
import types

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from common import NEGATIVE, PROMPT, Dice, Run, Torch, pipe

NAMES = {"sd15": "runwayml/stable-diffusion-v1-5", "sdxl": "stabilityai/stable-diffusion-xl-base-1.0"}


def package():
    missing = types.ModuleType("diffusers.pipelines.controlnet.multicontrolnet")
    missing.MultiControlNetModel = type("MultiControlNetModel", (), {})
    sys.modules.setdefault(missing.__name__, missing)
    import hidiffusion.hidiffusion as code

    return code


def hidiffusion(models, model, kind, steps, size, thresholds, aggressive):
    code = package()
    for key in ["sd15_1024", "sdxl_2048"]:
        code.switching_threshold_ratio_dict[key] = thresholds
    code.is_aggressive_raunet = aggressive
    width, height = size
    run = Run(model=model, prompt=PROMPT, negative_prompt=NEGATIVE, width=width, height=height, steps=steps, guidance_scale=7.5, sampler="ddim",
              eta=0.0, seed=5, aggressive=aggressive, **thresholds)
    p = pipe(kind, models / f"tiny-{model}", DDIMScheduler)
    p.register_to_config(_name_or_path=NAMES[model])
    code.apply_hidiffusion(p)
    assert p.unet.info["pipeline"] is p
    # One draw for each transformer block in windows, in the order in which they run.
    stream = {"dice": Dice(5, 0, 0)}
    code.torch = Torch(rand=lambda n: torch.tensor([(stream["dice"].below(4) + 0.5) / 4]))

    def seen(_, i, t, kept):
        run.latents(0, i, kept["latents"])
        stream["dice"] = Dice(5, 0, i + 1)
        return kept

    out = p(PROMPT, negative_prompt=NEGATIVE, width=width, height=height, num_inference_steps=steps, guidance_scale=7.5, eta=0.0,
            latents=run.draw(1, 4, height // 8, width // 8), output_type="latent", callback_on_step_end=seen)
    run.tensors["final_latents"] = out.images
    return run


def hidiffusion_sd15(models, checkouts):
    return hidiffusion(models, "sd15", StableDiffusionPipeline, 6, (512, 448), {"T1_ratio": 0.7, "T2_ratio": 0.34}, False)


def hidiffusion_sdxl(models, checkouts):
    """What the package does from 4096 pixels on: both thresholds."""
    return hidiffusion(models, "sdxl", StableDiffusionXLPipeline, 6, (512, 448), {"T1_ratio": 0.7, "T2_ratio": 0.34}, False)


def hidiffusion_aggressive_sdxl(models, checkouts):
    """What it does below 4096 pixels: `T2_ratio` gives way to the first 8 / 50 of the steps, which `T1_ratio` leaves out. An odd map, too."""
    return hidiffusion(models, "sdxl", StableDiffusionXLPipeline, 13, (448, 456), {"T1_ratio": 0.4, "T2_ratio": 0.0}, True)
