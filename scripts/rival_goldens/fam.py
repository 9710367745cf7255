"""FAM diffusion: no code is published; an oracle of equations 4, 6, 7 and 8-11 of arXiv 2411.18552, with whole attention matrices.

What the paper leaves open: latents are enlarged by `interpolate(mode="bicubic")`; h and w of the cut-off are those of the map that is
filtered; attention matrices are enlarged by repetition both ways and divided by the factor's square, so that rows still sum to 1.
"""

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionXLPipeline

from common import NEGATIVE, PROMPT, Run, embedded, guided, pipe


class Modulated:
    """A self-attention that keeps its matrix, or mixes a kept one in."""

    def __init__(self, share):
        self.share, self.kept, self.keeps = share, None, True

    def __call__(self, attn, x, encoder_hidden_states=None, attention_mask=None, **_):
        q, k, v = (attn.head_to_batch_dim(project(x)) for project in (attn.to_q, attn.to_k, attn.to_v))
        matrix = (q @ k.transpose(1, 2) * attn.scale).softmax(-1)
        if self.keeps:
            self.kept = matrix
        else:
            n, m = self.kept.shape[-1], matrix.shape[-1]
            side, factor = round(n ** 0.5), round((m // n) ** 0.5)
            small = self.kept.reshape(-1, side, side, side, side)
            for dim in range(1, 5):
                small = small.repeat_interleave(factor, dim)
            matrix = self.share * small.reshape(-1, m, m) / factor ** 2 + (1 - self.share) * matrix
        return attn.to_out[0](attn.batch_to_head_dim(matrix @ v))


@torch.no_grad()
def fam_sdxl(models, checkouts):
    c, share, steps = 0.5, 0.7, 4
    run = Run(model="sdxl", prompt=PROMPT, negative_prompt=NEGATIVE, width=512, height=512, steps=steps, guidance_scale=7.5, sampler="ddim", eta=0.0)
    p = pipe(StableDiffusionXLPipeline, models / "tiny-sdxl", DDIMScheduler)
    texts, pooled = embedded(p, True)
    processors = {name: Modulated(share) if name.startswith("up_blocks.0.") and "attn1" in name else processor
                  for name, processor in p.unet.attn_processors.items()}
    modulated = [processor for processor in processors.values() if isinstance(processor, Modulated)]
    assert len(modulated) == 9
    p.unet.set_attn_processor(processors)
    p.scheduler.set_timesteps(steps)
    x, matrices = run.draw(1, 4, 32, 32), []
    for i, t in enumerate(p.scheduler.timesteps):
        e = guided(p, x, t, texts, pooled, 7.5, (256, 256))
        matrices.append([processor.kept for processor in modulated])
        x = p.scheduler.step(e, t, x, eta=0.0).prev_sample
    run.latents(0, steps - 1, x)
    enlarged, noise = F.interpolate(x, scale_factor=2, mode="bicubic"), run.draw(1, 4, 64, 64)
    x = p.scheduler.add_noise(enlarged, noise, p.scheduler.timesteps[:1])
    for i, t in enumerate(p.scheduler.timesteps):
        rho = t.item() / 1000
        away = (torch.arange(64) - 32).abs()
        low = away < 64 * c * (1 - rho) / 2
        high_pass = torch.where(low[:, None] & low[None], rho, 1.0)
        spectrum = lambda z: torch.fft.fftshift(torch.fft.fft2(z), dim=(-2, -1))
        mixed = high_pass * spectrum(x) + (1 - high_pass) * spectrum(p.scheduler.add_noise(enlarged, noise, t[None]))
        x = torch.fft.ifft2(torch.fft.ifftshift(mixed, dim=(-2, -1))).real
        for processor, kept in zip(modulated, matrices[i]):
            processor.keeps, processor.kept = False, kept
        x = p.scheduler.step(guided(p, x, t, texts, pooled, 7.5, (512, 512)), t, x, eta=0.0).prev_sample
        if i in (0, 2):
            run.latents(1, i, x)
    run.tensors["final_latents"] = x
    return run
