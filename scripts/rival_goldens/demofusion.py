"""DemoFusion by PRIS-CV/DemoFusion at 5024487355506ad0278f993aaa97d35b1bc482f3, on the CPU, with DDIM: jitter from the seeded stream (the code
draws it unseeded), noise from `draws`, windows of 32 latents with a stride of 16 (its defaults are 128 and 64). Its
check that the image is a multiple of 1024 pixels is left out."""

import sys
import types

import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline

from common import NEGATIVE, PROMPT, Dice, Run, Torch, unused

SEED = 9


class Phases:
    """Counts phases and steps by the callback, and keeps what is wanted of them."""

    def __init__(self, run):
        self.run, self.stage, self.step = run, 0, 0

    def dice(self):
        return Dice(SEED, self.stage, self.step)

    def seen(self, i, t, latents):
        self.run.latents(self.stage, i, latents)
        self.step += 1
        if self.step == self.run.spec["steps"]:
            self.stage, self.step = self.stage + 1, 0


def pipeline(kind, models, run):
    """The official class on the tiny model; what it decodes last is the result."""
    base = StableDiffusionXLPipeline.from_pretrained(models / "tiny-sdxl")
    scheduler = DDIMScheduler.from_pretrained(models / "tiny-sdxl", subfolder="scheduler")
    # DDIM keeps no count of its steps, which the code would set back for every view.
    scheduler._init_step_index = lambda t: None
    names = ["vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet"]
    p = kind(**{name: getattr(base, name) for name in names}, scheduler=scheduler)
    p.set_progress_bar_config(disable=True)
    p.check_inputs = lambda *given: None
    decode = p.vae.decode

    def decoded(z, **options):
        run.tensors["final_latents"] = z * p.vae.config.scaling_factor
        return decode(z, **options)

    p.vae.decode = decoded
    return p


def demofusion(models, checkouts, width, height, steps):
    sys.path.insert(0, str(checkouts / "DemoFusion"))
    unused("matplotlib", "matplotlib.pyplot")
    import pipeline_demofusion_sdxl as code

    run = Run(model="sdxl", prompt=PROMPT, negative_prompt=NEGATIVE, width=width, height=height, steps=steps, guidance_scale=7.5, sampler="ddim",
              eta=0.0, seed=SEED, sigma=0.8)
    p, phases = pipeline(code.DemoFusionSDXLPipeline, models, run), Phases(run)
    get_views, state = p.get_views, {}

    def views(*given, **named):
        state["dice"] = phases.dice()
        return get_views(*given, **named)

    p.get_views = views
    code.random = types.SimpleNamespace(randint=lambda a, b: a + state["dice"].below(b - a + 1))
    code.torch = Torch(randn_like=lambda x: run.draw(*x.shape))
    scale = max(width, height) // 256
    p(PROMPT, negative_prompt=NEGATIVE, height=height, width=width, num_inference_steps=steps, guidance_scale=7.5, eta=0.0, view_batch_size=4,
      stride=16, sigma=0.8, latents=run.draw(1, 4, height // scale // 8, width // scale // 8), output_type="pt", multi_decoder=False,
      callback=phases.seen)
    return run


def demofusion_sdxl(models, checkouts):
    return demofusion(models, checkouts, 512, 512, 5)


def demofusion_wide_sdxl(models, checkouts):
    return demofusion(models, checkouts, 768, 384, 4)
