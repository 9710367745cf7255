"""RectifiedHR by EnVision-Research/RectifiedHR at e1331b781845ea99505147a5d4a8cf543d2ae7a4: its pipeline and its rules for stages; the loop is that of
`run_sdxl.py`, with images as floats where it goes through bytes and bf16. Noise from `draws`, f32 on the CPU."""

import torch
from diffusers import DDIMScheduler

from common import NEGATIVE, PROMPT, Run, enlarged, official, pipe


@torch.no_grad()
def rectified_hr_sdxl(models, checkouts):
    official(checkouts / "RectifiedHR")
    import pipelines.pipeline_sdxl as code
    from utils.main_tools import quantic_cfg, quantic_HW, quantic_step

    n, steps, low, high, exponent = 3, 10, 6, 10, 0.5
    run = Run(model="sdxl", prompt=PROMPT, negative_prompt=NEGATIVE, width=512, height=512, steps=steps, guidance_scale=7.5, sampler="ddim", eta=0.0)
    p = pipe(code.SDXLPipeline, models / "tiny-sdxl", DDIMScheduler)
    ends, weights, sizes = quantic_step(low, high, n, exponent), quantic_cfg(5, 30, n, exponent), quantic_HW((256, 256), (512, 512), n)
    memory = {"predict_x0_list": []}
    scale = p.vae.config.scaling_factor
    x = run.draw(1, 4, 32, 32)
    for s in range(n):
        done = len(memory["predict_x0_list"])
        if s > 0:
            image = (p.vae.decode(memory["predict_x0_list"][-1] / scale).sample / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy()
            image = torch.from_numpy(enlarged(image, sizes[s][0])).permute(2, 0, 1)[None] * 2 - 1
            x = p.vae.encode(image).latent_dist.mean * scale
            x = p.scheduler.add_noise(x, run.draw(*x.shape), p.scheduler.timesteps[done - steps])

        def seen(_, i, t, kept, s=s, done=done):
            run.latents(s, done + i, kept["latents"])
            return kept

        out = p(prompt=PROMPT, negative_prompt=NEGATIVE, num_inference_steps=steps, guidance_scale=weights[s], latents=x, MEMORY=memory,
                strength=(steps - done) / steps, denoising_end=ends[s + 1] / steps, output_type="latent", callback_on_step_end=seen)
    run.tensors["final_latents"] = out.images
    return run
