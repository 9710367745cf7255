#!/usr/bin/env python3
"""Writes step sequences of diffusers' schedulers on random model outputs, the golden arrays of
`crates/generation/tests/data/schedulers` that its README marks as made by this script.

    python scripts/scheduler_goldens.py OUT_DIR
"""

import sys
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

CONFIG = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, set_alpha_to_one=False, skip_prk_steps=True)
V = dict(prediction_type="v_prediction")
CASES = {
    "ddim_zero_snr": ("DDIMScheduler", dict(V, timestep_spacing="trailing", rescale_betas_zero_snr=True)),
    "ddpm_sd": ("DDPMScheduler", {}),
    "ddpm_v": ("DDPMScheduler", V),
    "pndm_v": ("PNDMScheduler", V),
    "euler_ancestral_sd": ("EulerAncestralDiscreteScheduler", {}),
    "euler_ancestral_v": ("EulerAncestralDiscreteScheduler", V),
    "unipc_sd_karras": ("UniPCMultistepScheduler", dict(use_karras_sigmas=True)),
}


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    for seed, (name, (cls, more)) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(1000 + seed)
        randn = lambda: torch.randn(1, 4, 8, 8, generator=generator)
        tensors = {}
        for n in (10, 7):
            scheduler = getattr(diffusers, cls).from_config({**CONFIG, **more})
            scheduler.set_timesteps(n)
            drawn = []
            # Step noise is drawn through this function; keep what it gives.
            module = sys.modules[type(scheduler).__module__]
            original = module.randn_tensor if hasattr(module, "randn_tensor") else None
            if original:
                module.randn_tensor = lambda shape, **_: drawn.append(torch.randn(shape, generator=generator)) or drawn[-1]
            x = randn() * scheduler.init_noise_sigma
            outputs, samples, scaled, noises = [], [], [], []
            tensors[f"n{n}.init"] = x.clone()
            for t in scheduler.timesteps:
                scaled.append(scheduler.scale_model_input(x, t))
                outputs.append(randn())
                before = len(drawn)
                x = scheduler.step(outputs[-1], t, x).prev_sample
                samples.append(x.clone())
                # The last DDPM step draws nothing.
                noises.append(drawn[-1] if len(drawn) > before else torch.zeros_like(x))
            if original:
                module.randn_tensor = original
            tensors[f"n{n}.timesteps"] = scheduler.timesteps.float()
            for key, list_ in [("model_outputs", outputs), ("samples", samples), ("scaled_inputs", scaled)]:
                tensors[f"n{n}.{key}"] = torch.stack(list_)
            if drawn:
                tensors[f"n{n}.noise"] = torch.stack(noises)
        save_file({k: v.contiguous() for k, v in tensors.items()}, out / f"{name}.safetensors")
        print(name, "with noise" if any("noise" in k for k in tensors) else "")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
