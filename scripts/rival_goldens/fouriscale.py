"""FouriScale by LeonHLJ/FouriScale at 6fb392eae53a5c1b67e6072f8a36cdae7b970258: its loops, convolution and attention processors and FreeU.

Changed: base sizes and SDXL's buckets are those of the tiny models (half and a quarter of the official ones); `start_step` and `stop_step`
are moved so that every part acts in a few steps; FreeU's channel numbers 1280 and 640 are the tiny models', and its mask is on the CPU;
attention processors are set by the model's own names, not by the official list; names that diffusers moved or dropped are put back;
eta is 0, not 1.
"""

import importlib
import sys
import types

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.unets import unet_2d_condition

from common import NEGATIVE, PROMPT, Run, pipe


def official(checkouts, name):
    folder = checkouts / "FouriScale"
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    # What is imported there and not used here.
    for stub in ["omegaconf", "util", "util.misc", "sync_tiled_decode"]:
        sys.modules.setdefault(stub, types.ModuleType(stub))
    sys.modules["omegaconf"].OmegaConf = None
    sys.modules["util"].misc = sys.modules["util.misc"]
    sys.modules["sync_tiled_decode"].apply_sync_tiled_decode = sys.modules["sync_tiled_decode"].apply_tiled_processors = None
    sys.modules["diffusers.models.unet_2d_condition"] = unet_2d_condition
    return importlib.import_module(name), freeu(folder)


def freeu(folder):
    """FreeU's code with the widths of the tiny models."""
    text = (folder / "free_lunch_utils.py").read_text().replace(".cuda()", "")
    for old, new in [("[:,:640]", "[:,:12]"), ("[:,:320]", "[:,:8]"), ("== 1280", "== 24"), ("== 640", "== 16")]:
        text = text.replace(old, new)
    sys.modules["diffusers.models.unet_2d_condition"] = unet_2d_condition
    module = types.ModuleType("free_lunch_utils")
    exec(compile(text, "free_lunch_utils.py", "exec"), module.__dict__)
    return module


def registered(p, code, factors):
    code.register_free_upblock2d(p, **factors)
    code.register_free_crossattn_upblock2d(p, **factors)
    # diffusers hands the blocks more by now, by name.
    for block in p.unet.up_blocks:
        inner = block.forward
        block.forward = lambda *given, inner=inner, attention_mask=None, encoder_attention_mask=None, **named: inner(*given, **named)


def lines(checkouts, name):
    return (checkouts / "FouriScale" / "assets" / name).read_text().split("\n")


def sd(models, checkouts, height, width, start, stop):
    code, lunch = official(checkouts, "text2image")
    steps = 5
    run = Run(model="sd15", prompt=PROMPT, negative_prompt=NEGATIVE, width=width, height=height, steps=steps, guidance_scale=7.5, sampler="ddim",
              eta=0.0, start=start, stop=stop)
    p = pipe(StableDiffusionPipeline, models / "tiny-sd15", DDIMScheduler)
    p.unet.set_attn_processor({name: code.TrainingFreeAttnProcessor(name) for name in p.unet.attn_processors})
    registered(p, lunch, {"b1": 1.2, "b2": 1.4, "s1": 0.9, "s2": 0.2})
    p.unet.__dict__["in_channels"] = 4
    layers = [name for name in lines(checkouts, "layer_settings/sd1.5.txt") if name]
    base = {name: [float(s) / 2 for s in size.split(",")] for name, size in (line.split(":") for line in lines(checkouts, "base_settings/sd1.5.txt") if line)}
    latents = run.draw(1, 4, height // 8, width // 8)
    dilation = max(-(-latents.shape[2] // 32), -(-latents.shape[3] // 32))
    forward = code.pipeline_processor(p, dilation=dilation, start_step=start, stop_step=stop, layer_settings=layers, base_settings=base, progressive=True)
    out = forward(PROMPT, height=height, width=width, num_inference_steps=steps, negative_prompt=NEGATIVE, eta=0.0, latents=latents,
                  output_type="latent", callback=lambda i, t, x: run.latents(0, i, x) if i > 1 else None)
    run.tensors["final_latents"] = out.images
    return run


def fouriscale_sd15(models, checkouts):
    """Twice the side, all of it."""
    return sd(models, checkouts, 512, 448, 2, 4)


def fouriscale_sd15_padded(models, checkouts):
    """Between two and three times the side, and more high than wide: features are padded."""
    return sd(models, checkouts, 576, 320, 1, 4)


def fouriscale_sdxl(models, checkouts):
    """A bucket as the base, amplified guidance."""
    code, lunch = official(checkouts, "text2image_xl")
    height, width, steps, start, stop = 288, 768, 5, 2, 4
    run = Run(model="sdxl", prompt=PROMPT, negative_prompt=NEGATIVE, width=width, height=height, steps=steps, guidance_scale=5.0, sampler="ddim",
              eta=0.0, start=start, stop=stop)
    p = pipe(StableDiffusionXLPipeline, models / "tiny-sdxl", DDIMScheduler)
    p.unet.set_attn_processor({name: code.TrainingFreeAttnProcessor(name) for name in p.unet.attn_processors})
    registered(p, lunch, {"b1": 1.1, "b2": 1.2, "s1": 0.6, "s2": 0.4})
    p._get_add_time_ids = lambda original, crop, target, dtype: torch.tensor([[*original, *crop, *target]], dtype=dtype)
    layers = [name for name in lines(checkouts, "layer_settings/sdxl.txt") if name]
    buckets = {ratio: [float(s) / 4 for s in size.split(",")] for ratio, size in (line.split(":") for line in lines(checkouts, "base_settings/sdxl.txt") if line)}
    base, _ = code.find_smallest_padding_pair(height, width, buckets)
    dilation = max(-(-height // base[0]), -(-width // base[1]))
    assert (base, dilation) == ((160.0, 384.0), 2)
    forward = code.pipeline_processor(p, dilation=dilation, start_step=start, stop_step=stop, layer_settings=layers, base_size=base, progressive=True)
    out = forward(PROMPT, height=height, width=width, num_inference_steps=steps, negative_prompt=NEGATIVE, eta=0.0,
                  latents=run.draw(1, 4, height // 8, width // 8), original_size=base, target_size=base, amp_guidance=True, output_type="latent",
                  callback=lambda i, t, x: run.latents(0, i, x) if i > 1 else None)
    run.tensors["final_latents"] = out.images
    return run
