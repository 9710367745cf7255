"""DiffuseHigh by yhyun225/DiffuseHigh at 05dc747c75bb589a1e7edda53f8779cb87263ebc with pytorch_wavelets 1.3.0: noise from `draws`, the blur's width
from the seeded stream; the autoencoder takes whole images instead of tiles. f32 on the CPU."""

import sys
import types

import torch
from diffusers import EulerDiscreteScheduler

from common import NEGATIVE, PROMPT, Dice, Run, official, pipe


@torch.no_grad()
def diffuse_high_sdxl(models, checkouts):
    # Of setuptools; pytorch_wavelets imports it for another transform.
    sys.modules.setdefault("pkg_resources", types.SimpleNamespace(resource_stream=None))
    official(checkouts / "DiffuseHigh")
    import pipeline_diffusehigh_sdxl as code

    run = Run(model="sdxl", prompt=PROMPT, negative_prompt=NEGATIVE, width=512, height=512, steps=8, guidance_scale=5.0, sampler="euler", eta=0.0,
              seed=11)
    p = pipe(code.DiffuseHighSDXLPipeline, models / "tiny-sdxl", EulerDiscreteScheduler)
    p.enable_vae_tiling = lambda: None
    state = {"stage": 0, "i": 0}
    # Noise is drawn in every step too, and not used.
    step, draw = p.edm_scheduler_step, lambda shape, *_, **__: run.draw(*shape)
    code.randn_tensor = draw

    def seen(*given, **named):
        code.randn_tensor = lambda shape, *_, **__: torch.zeros(shape)
        found = step(*given, **named)
        code.randn_tensor = draw
        run.latents(state["stage"], state["i"], found[0])
        state["i"] += 1
        return found

    p.edm_scheduler_step = seen

    class Blur(code.GaussianBlur):
        def __init__(self, kernel_size, sigma):
            super().__init__(kernel_size, sigma)
            # The third of eight steps is the first that is run.
            state.update(stage=state["stage"] + 1, i=3)

        def get_params(self, low, high):
            return low + (high - low) * (Dice(11, state["stage"], 0xFFFFFFFF).bits() >> 11) / 2**53

    code.GaussianBlur = Blur

    def after(_, i, t, kept):
        run.latents(0, i, kept["latents"])
        return kept

    final = {}
    decode = p._decode_vae_latent

    def decoded(latents, **named):
        final["latents"] = latents
        return decode(latents, **named)

    p._decode_vae_latent = decoded
    p(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=8, guidance_scale=5.0, latents=run.draw(1, 4, 32, 32), target_height=[384, 512],
      target_width=[384, 512], noising_steps=5, diffusehigh_guidance_scale=10.0, dwt_steps=2, callback_on_step_end=after)
    run.tensors["final_latents"] = final["latents"]
    return run
