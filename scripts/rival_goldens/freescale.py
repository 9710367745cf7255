"""FreeScale by ali-vilab/FreeScale at d5a22567561ae85719bdec733eb7e6c200fc6ff2: its pipeline, attention and FreeU, on the CPU.

Changed in the text of its files: 1024 pixels and 128 latents are the tiny model's 256 and 32, f16 is left out, FreeU's channel numbers are the
tiny model's. Names that diffusers moved or dropped are put back. Jitter comes from the seeded stream, a new one for each step, in the
order in which blocks run; noise comes from `draws`. Steps are few, so restart and the end of dilation are moved. The
autoencoder works on whole images, not in tiles.
"""

import sys
import types

import diffusers
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from diffusers.models.autoencoders import vae as diffusers_vae

from common import NEGATIVE, PROMPT, Dice, Run
from fouriscale import freeu, registered


def edited(folder, name, *changes):
    text = (folder / f"{name}.py").read_text()
    for old, new in changes:
        assert old in text, (name, old)
        text = text.replace(old, new)
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(text, f"{name}.py", "exec"), module.__dict__)
    return module


def official(checkouts):
    folder = checkouts / "FreeScale"
    for name, place in {"LoraLoaderMixin": diffusers.loaders, "LoRAAttnProcessor2_0": diffusers.models.attention_processor,
                        "LoRAXFormersAttnProcessor": diffusers.models.attention_processor}.items():
        if not hasattr(place, name):
            setattr(place, name, type(name, (), {}))
    diffusers.utils.randn_tensor = diffusers.utils.torch_utils.randn_tensor
    diffusers.utils.is_invisible_watermark_available = lambda: False
    attention = edited(folder, "scale_attention", ("1024", "256"), ("128", "32"))
    return edited(folder, "pipeline_freescale", ("1024", "256"), (".half()", "")), attention, freeu(folder)


def freescale(models, checkouts, sizes, fast):
    code, attention, lunch = official(checkouts)
    steps, restart, seed = 5, 2, 11
    height, width = sizes[-1]
    run = Run(model="sdxl", prompt=PROMPT, negative_prompt=NEGATIVE, width=width, height=height, steps=steps, guidance_scale=7.5, sampler="euler",
              eta=0.0, seed=seed)
    base = StableDiffusionXLPipeline.from_pretrained(models / "tiny-sdxl")
    p = code.StableDiffusionXLPipeline(vae=base.vae, text_encoder=base.text_encoder, text_encoder_2=base.text_encoder_2, tokenizer=base.tokenizer,
                                       tokenizer_2=base.tokenizer_2, unet=base.unet,
                                       scheduler=EulerDiscreteScheduler.from_pretrained(models / "tiny-sdxl", subfolder="scheduler"))
    p.set_progress_bar_config(disable=True)
    p.vae.disable_tiling()
    registered(p, lunch, {"b1": 1.1, "b2": 1.2, "s1": 0.6, "s2": 0.4})
    p._get_add_time_ids = lambda original, crop, target, dtype: torch.tensor([[*original, *crop, *target]], dtype=dtype)

    stage = types.SimpleNamespace(index=0, step=0, dice=None)
    attention.random = types.SimpleNamespace(randint=lambda a, b: a + stage.dice.below(b - a + 1))
    inner = p.unet.forward

    def forward(*given, **named):
        stage.dice = Dice(seed, stage.index, stage.step)
        return inner(*given, **named)

    p.unet.forward = forward
    one_step = p.scheduler.step

    def stepped(*given, **named):
        found = one_step(*given, **named)
        first = restart if stage.index else 0
        if (stage.step == steps - 1) if stage.index == 0 else first + stage.step < steps - 1:
            run.latents(stage.index, first + stage.step, found[0])
        run.tensors["final_latents"] = found[0].clone()
        stage.step += 1
        if first + stage.step == steps:
            stage.index, stage.step = stage.index + 1, 0
        return found

    p.scheduler.step = stepped
    diffusers_vae.randn_tensor = lambda shape, **_: run.draw(*shape)
    plain = torch.randn_like
    torch.randn_like = lambda x: run.draw(*x.shape)
    h, w = sizes[0]
    p(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=steps, guidance_scale=7.5, resolutions_list=sizes, restart_steps=[restart] * (len(sizes) - 1),
      dilate_tau=4, fast_mode=fast, cosine_scale=2.0, latents=run.draw(1, 4, h // 8, w // 8), output_type="latent")
    torch.randn_like = plain
    return run


def freescale_sdxl(models, checkouts):
    return freescale(models, checkouts, [[256, 256], [512, 512]], False)


def freescale_sdxl_fast(models, checkouts):
    return freescale(models, checkouts, [[256, 256], [512, 512]], True)

