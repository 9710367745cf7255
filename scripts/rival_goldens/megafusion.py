"""MegaFusion by haoningwu3639/MegaFusion at af6d56f991eaeb4f124ee79c2435b1b9974c719c, `SDM-MegaFusion` and `SDXL-MegaFusion`: their pipelines and
schedulers; the loop over stages is that of their `inference.py`, with sizes of the tiny models. Noise from `draws`, images as floats where
they go through bytes, f32 on the CPU. Their U-Net is a copy of an older diffusers' whose one change is done to diffusers' own here: `dilation` and
`padding` of 2 in the convolutions of the mid block. Their re-scheduling knows
sides of 512, 768 and 1024 pixels alone (SDXL: twice these); here they stand for 256, 384 and 512.
Stages that are not re-scheduled are told the first side: by default `SDM-MegaFusion` re-schedules them as if for 768.
A guidance of 2 in place of 7, with which rounding to f32 alone moves the last stage by 2e-4 of its rms."""

import types

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from common import NEGATIVE, PROMPT, Run, Torch, drawn_posteriors, enlarged, official


def load(folder, xl):
    parts = {
        "vae": AutoencoderKL.from_pretrained(folder, subfolder="vae"),
        "unet": UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        "text_encoder": CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
        "tokenizer": CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
    }
    if xl:
        parts["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2")
        parts["tokenizer_2"] = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer_2")
    return parts


@torch.no_grad()
def megafusion(models, checkouts, model, sides, stage_steps, plus, noised):
    xl = model == "sdxl"
    official(checkouts / "MegaFusion" / ("SDXL-MegaFusion" if xl else "SDM-MegaFusion"))
    if xl:
        import model.pipeline_xl as code
        kind = code.StableDiffusionXLPipeline
    else:
        import model.pipeline as code
        kind = code.StableDiffusionPipeline
    import model.scheduling_ddim as ddim

    steps = sum(stage_steps)
    run = Run(model=model, prompt=PROMPT, negative_prompt=NEGATIVE, width=sides[-1], height=sides[-1], steps=steps, guidance_scale=2.0,
              sampler="ddim", eta=0.0)
    folder = models / f"tiny-{model}"
    known = [(4 if xl else 2) * (side if plus else sides[0]) for side in sides]
    schedulers = [ddim.DDIMScheduler.from_pretrained(folder, subfolder="scheduler", reschedule_res=side) for side in known]
    parts = load(folder, xl)
    if plus:
        for resnet in parts["unet"].mid_block.resnets:
            for conv in [resnet.conv1, resnet.conv2]:
                conv.dilation = conv.padding = (2, 2)
    p = kind(scheduler=schedulers[0], **parts)
    p.set_progress_bar_config(disable=True)
    code.torch = Torch(cuda=types.SimpleNamespace(synchronize=lambda: None))
    drawn_posteriors(run)
    # Each stage decodes the latents after its last step, and then the late estimate.
    final, decode = {}, p.decode_latents

    def kept(latents):
        final.update(latents=latents, image=decode(latents))
        return final["image"]

    p.decode_latents = kept
    x = run.draw(1, 4, sides[0] // 8, sides[0] // 8)
    first = 0
    for s, (side, n) in enumerate(zip(sides, stage_steps)):
        scheduler = schedulers[s]
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps[first:first + n]
        if s > 0:
            image = torch.from_numpy(enlarged(image, side)).permute(2, 0, 1)[None] * 2 - 1
            latents = p.vae.encode(image).latent_dist.sample() * p.vae.config.scaling_factor
            noise = run.draw(*latents.shape)
            x = scheduler.add_noise(latents, noise, timesteps[noised[s]])
        p.scheduler = scheduler
        # Every second result of `step` is that of the late estimate.
        state = {"calls": 0}
        step = scheduler.step

        def seen(*given, s=s, first=first, state=state, step=step, **named):
            found = step(*given, **named)
            if state["calls"] % 2 == 0:
                run.latents(s, first + state["calls"] // 2, found.prev_sample if hasattr(found, "prev_sample") else found[0])
            state["calls"] += 1
            return found

        # The pipeline asks the signature of `step` whether to pass `eta`; without it, it is 0.
        scheduler.step = seen
        p(prompt=PROMPT, negative_prompt=NEGATIVE, height=side, width=side, latents=x, num_inference_steps=steps, guidance_scale=2.0,
          stage_timesteps=timesteps, output_type="np")
        assert state["calls"] == 2 * n, state
        image = final["image"][0]
        first += n
    run.tensors["final_latents"] = final["latents"]
    return run


def megafusion_sd15(models, checkouts):
    return megafusion(models, checkouts, "sd15", [256, 384, 512], [6, 2, 2], False, [0, 0, 0])


def megafusion_pp_sd15(models, checkouts):
    return megafusion(models, checkouts, "sd15", [256, 384, 512], [4, 3, 3], True, [0, 2, 2])


def megafusion_pp_sdxl(models, checkouts):
    return megafusion(models, checkouts, "sdxl", [256, 512], [5, 5], True, [0, 4])
