"""MultiDiffusion by diffusers 0.42, `StableDiffusionPanoramaPipeline`: windows of 32 latents with a stride of 12 (its defaults are 64 and 8)."""

from diffusers import DDIMScheduler, StableDiffusionPanoramaPipeline

from common import NEGATIVE, PROMPT, Run, pipe


def multidiffusion_sd15(models, checkouts):
    run = Run(model="sd15", prompt=PROMPT, negative_prompt=NEGATIVE, width=448, height=352, steps=4, guidance_scale=7.5, sampler="ddim", eta=0.0)
    panorama = pipe(StableDiffusionPanoramaPipeline, models / "tiny-sd15", DDIMScheduler)
    views = panorama.get_views
    panorama.get_views = lambda h, w, circular_padding=False: views(h, w, window_size=32, stride=12, circular_padding=circular_padding)

    def seen(_, i, t, kept):
        run.latents(0, i, kept["latents"])
        return kept

    out = panorama(PROMPT, negative_prompt=NEGATIVE, width=448, height=352, num_inference_steps=4, guidance_scale=7.5, eta=0.0,
                   latents=run.draw(1, 4, 44, 56), output_type="latent", callback_on_step_end=seen)
    run.tensors["final_latents"] = out.images
    return run
