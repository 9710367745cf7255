"""FreCaS by xtudbxk/FreCaS at f9c0c4622d086cc78bf2959c957123121d2824d8, its four wrappers around diffusers' pipeline: noise from `draws`. The scheduler
is made with `timestep_spacing: linspace`, which the code would set in a configuration that diffusers has since frozen. f32 on the CPU. Weak guidance:
at the strength of its settings the code's own rounding grows to the tolerance."""

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from common import NEGATIVE, PROMPT, Run, Torch, drawn_posteriors, official, pipe


@torch.no_grad()
def frecas_sd21(models, checkouts):
    official(checkouts / "FreCaS")
    from utils import scheduler_wrapper as code
    from utils.camap_wrapper import camap_wrapper
    from utils.facfg_wrapper import facfg_wrapper

    sides, steps, ends = [256, 384, 576], [5, 3, 3], [300, 200, 0]
    run = Run(model="sd21", prompt=PROMPT, negative_prompt=NEGATIVE, width=576, height=576, steps=11, guidance_scale=2.0, sampler="ddim", eta=0.0)
    p = pipe(StableDiffusionPipeline, models / "tiny-sd21", DDIMScheduler)
    p.scheduler = DDIMScheduler.from_config(p.scheduler.config, timestep_spacing="linspace")
    code.DDIMScheduler = ()
    drawn_posteriors(run)
    code.torch = Torch(randn_like=lambda x: run.draw(*x.shape))
    camap_wrapper(p, camap_w=0.4)
    facfg_wrapper(p, gs=2.0, gsw=[4.0, 2.0], sizes=[(side // 8, side // 8) for side in sides])
    schedulers = [{"endtime": end, "steps": n, "size": (side, side)} for side, n, end in zip(sides, steps, ends)]
    code.scheduler_wrapper(p, schedulers=schedulers, gamma=3.0)

    def seen(_, k, t, kept):
        s = next(s for s in range(3) if k < sum(steps[:s + 1]))
        i = k - sum(steps[:s])
        # After the last step of a stage the latents are the next one's start.
        if s == 2 or i + 1 < steps[s]:
            run.latents(s, i, kept["latents"])
        return kept

    out = p(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=11, guidance_scale=2.0, latents=run.draw(1, 4, 32, 32), output_type="latent",
            callback_on_step_end=seen)
    run.spec["timesteps"] = [int(t) for t in torch.cat([s["timesteps"] for s in schedulers])]
    run.tensors["final_latents"] = out.images
    return run
