"""AccDiffusion by lzhxmu/AccDiffusion at d8b52c7e98fea881b93df6dbaebda7e3d9932396, on the CPU, with DDIM and all of its switches: jitter and
permutations from the seeded stream (the code draws them unseeded), noise from `draws`, windows of 32 latents with a stride of 16 (its defaults
are 128 and 64), a threshold at which windows differ. Its check that the image is a multiple of 1024 pixels is left out."""

import sys
import tempfile
import types

import torch

from common import NEGATIVE, PROMPT, Dice, Run, Torch, unused
from demofusion import SEED, Phases, pipeline


def accdiffusion_sdxl(models, checkouts):
    sys.path.insert(0, str(checkouts / "AccDiffusion"))
    unused("matplotlib", "matplotlib.pyplot")
    import accdiffusion_sdxl as code
    import utils

    c, steps, scale = 0.49, 4, 2
    run = Run(model="sdxl", prompt=PROMPT, negative_prompt=NEGATIVE, width=256 * scale, height=256 * scale, steps=steps, guidance_scale=7.5,
              sampler="ddim", eta=0.0, seed=SEED, sigma=0.8, threshold=c)
    p, phases = pipeline(code.AccDiffusionSDXLPipeline, models, run), Phases(run)
    get_views, prompts, state = utils.get_views, code.get_multidiffusion_prompts, {}

    # The windows of all phases are drawn when the first one is over: of each phase as in its first step.
    def views(height, width, **named):
        state["dice"] = Dice(SEED, height // (256 // 32) - 1, 0)
        return get_views(height, width, **named)

    def randint(a, b):
        return int(a) + state["dice"].below(int(b - a) + 1)

    def told(**named):
        found = prompts(**named)
        maps = utils.aggregate_attention(named["prompts"], named["attention_store"], 256, 256, ["up", "down"], True, 0)
        run.tensors["stage0.maps"] = maps.permute(2, 0, 1)[None]
        run.spec["texts"] = found[0][scale]
        mean = maps.mean((0, 1), keepdim=True)
        print(found[0], "nearest to a map's mean:", ((maps - mean).abs() / mean)[..., 1:maps.shape[-1] - 1].min().item())
        return found

    # Fisher-Yates, one stream a step, first for the first place.
    def permutation(n):
        if state.get("at") != (phases.stage, phases.step):
            state["at"] = (phases.stage, phases.step)
            state["shuffle"] = Dice(phases.dice().bits(), 0, 0)
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            j = state["shuffle"].below(i + 1)
            order[i], order[j] = order[j], order[i]
        return torch.tensor(order)

    utils.get_views, utils.random = views, types.SimpleNamespace(randint=randint)
    code.get_multidiffusion_prompts = told
    code.torch = Torch(randn_like=lambda x: run.draw(*x.shape), randperm=permutation)
    with tempfile.TemporaryDirectory() as folder:
        p(PROMPT, negative_prompt=NEGATIVE, height=256 * scale, width=256 * scale, num_inference_steps=steps, guidance_scale=7.5, eta=0.0,
          view_batch_size=16, stride=16, sigma=0.8, latents=run.draw(1, 4, 32, 32), multi_decoder=False, callback=phases.seen,
          multi_guidance_scale=7.5, use_guassian=True, use_multidiffusion=True, use_dilated_sampling=True, use_skip_residual=True,
          use_progressive_upscaling=True, shuffle=True, use_md_prompt=True, c=c, result_path=folder,
          cross_attention_kwargs={"edit_type": "visualize"})
    return run
