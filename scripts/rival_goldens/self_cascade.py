"""Self-Cascade without tuning by GuoLanqing/Self-Cascade at 4ca3dca90deff5acc791fafef2bcbe3e88545022, `pipeline_sdxl.py`: noise from `draws`,
DDIM in place of the checkpoint's Euler, whose start that file multiplies by the first noise level once too often; on the CPU."""

from diffusers import DDIMScheduler

from common import NEGATIVE, PROMPT, Run, official, pipe


def self_cascade_sdxl(models, checkouts):
    official(checkouts / "Self-Cascade")
    import source_override.pipeline_sdxl as code

    run = Run(model="sdxl", prompt=PROMPT, negative_prompt=NEGATIVE, width=512, height=512, steps=10, guidance_scale=7.5, sampler="ddim", eta=0.0)
    p = pipe(code.StableDiffusionXLPipeline, models / "tiny-sdxl", DDIMScheduler)
    code.randn_tensor = lambda shape, **_: run.draw(*shape)
    state = {"stage": 0, "first": 0}

    def seen(_, i, t, kept):
        run.latents(state["stage"], state["first"] + i, kept["latents"])
        return kept

    common = dict(negative_prompt=NEGATIVE, num_inference_steps=10, guidance_scale=7.5, callback_on_step_end=seen)
    _, latents = p(PROMPT, height=256, width=256, **common)
    # Strength 0.7: the first three steps are left out.
    state.update(stage=1, first=3)
    _, latents = p(PROMPT, height=512, width=512, lr_fea=latents, strength=0.7, **common)
    run.tensors["final_latents"] = latents * p.vae.config.scaling_factor
    return run
