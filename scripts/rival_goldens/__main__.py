#!/usr/bin/env python3
"""Golden loops of rival methods, by their own code on the tiny models of the tests.

    python scripts/rival_goldens --models crates/generation/tests/data/models --out crates/generation/tests/data/rivals
                                 [--checkouts FOLDER] [NAME...]

Writes NAME.safetensors: every Gaussian tensor that is drawn (`draws.<k>`, in order), latents after every step of every stage
(`stage<s>.latents.<i>`), `final_latents`, and what the run was asked for (metadata `spec`). Each file beside this one makes the
goldens of one method: its first lines say by which code, at which version, and what was changed to run it. `--checkouts` holds
checkouts of the official repositories under their names.

Random integers come from SplitMix64, a stream for each seed, stage and step (`Dice`), as in the Rust code.
Needs torch, diffusers, transformers, safetensors, hidiffusion, opencv-python-headless. One thread, f32, CPU.
"""

import argparse
import importlib
from pathlib import Path

import torch

GOLDENS = {
    "multidiffusion": ["multidiffusion_sd15"],
    "hidiffusion_package": ["hidiffusion_sd15", "hidiffusion_sdxl", "hidiffusion_aggressive_sdxl"],
    "self_cascade": ["self_cascade_sdxl"],
    "upsample_guidance": ["upsample_guidance_sd15"],
    "megafusion": ["megafusion_sd15", "megafusion_pp_sd15", "megafusion_pp_sdxl"],
    "rectified_hr": ["rectified_hr_sdxl"],
    "diffuse_high": ["diffuse_high_sdxl"],
    "frecas": ["frecas_sd21"],
    "demofusion": ["demofusion_sdxl", "demofusion_wide_sdxl"],
    "accdiffusion": ["accdiffusion_sdxl"],
    "deep_shrink": ["deep_shrink_sd15"],
    "fouriscale": ["fouriscale_sd15", "fouriscale_sd15_padded", "fouriscale_sdxl"],
    "freescale": ["freescale_sdxl", "freescale_sdxl_fast"],
    "fam": ["fam_sdxl"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkouts", type=Path, help="a folder of checkouts")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for module, names in GOLDENS.items():
        for name in names:
            if not args.names or name in args.names:
                getattr(importlib.import_module(module), name)(args.models, args.checkouts).save(args.out, name)


if __name__ == "__main__":
    main()
