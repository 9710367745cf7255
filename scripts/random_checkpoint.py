#!/usr/bin/env python3
"""Writes a checkpoint of a published architecture with random weights: real layout, real size, no training.

    python scripts/random_checkpoint.py sd15|sd21|sdxl OUT_DIR [--tokenizer DIR]

The configurations are those of the published checkpoints, as remembered; weights are stored in half precision under
the `fp16` variant's names. A CLIP vocabulary is needed (`vocab.json` and `merges.txt` in --tokenizer); the pocket
checkpoint's does for tests, since ids only have to lie inside the table. Needs torch, diffusers, transformers.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

SD = dict(sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280, 1280))
UNET = {
    "sd15": dict(SD, cross_attention_dim=768, attention_head_dim=8),
    "sd21": dict(SD, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
    "sdxl": dict(
        sample_size=128, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    ),
}
LARGE = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu", projection_dim=768)
HUGE = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu", projection_dim=512)
BIG_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu", projection_dim=1280)
TEXT = {"sd15": [LARGE], "sd21": [HUGE], "sdxl": [LARGE, BIG_G]}
VAE = dict(in_channels=3, out_channels=3, latent_channels=4, layers_per_block=2, block_out_channels=(128, 256, 512, 512),
           down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
SCHEDULER = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1, skip_prk_steps=True)


def main():
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted(UNET))
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=Path(__file__).parent.parent / "datasets" / "pocket" / "tokenizer")
    args = parser.parse_args()
    torch.manual_seed(0)
    xl = args.family == "sdxl"
    # transformers and diffusers both know `variant`.
    store = dict(variant="fp16", safe_serialization=True)
    for i, config in enumerate(TEXT[args.family]):
        suffix = "_2" if i else ""
        source = args.out / f"tokenizer{suffix}"
        shutil.copytree(args.tokenizer, source, dirs_exist_ok=True)
        vocabulary = json.load(open(source / "vocab.json", encoding="utf-8"))
        length = json.load(open(source / "tokenizer_config.json"))["model_max_length"]
        config = CLIPTextConfig(vocab_size=49408, bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1, max_position_embeddings=max(77, length), **config)
        model = (CLIPTextModelWithProjection if i else CLIPTextModel)(config)
        model.half().save_pretrained(args.out / f"text_encoder{suffix}", **store)
    for name, model in [("unet", lambda: UNet2DConditionModel(**UNET[args.family])),
                        ("vae", lambda: AutoencoderKL(**VAE, sample_size=1024 if xl else 512, scaling_factor=0.13025 if xl else 0.18215, force_upcast=xl))]:
        model().half().save_pretrained(args.out / name, **store)
    scheduler = "EulerDiscreteScheduler" if xl else "PNDMScheduler"
    (args.out / "scheduler").mkdir(exist_ok=True)
    more = dict(timestep_spacing="leading") if xl else {}
    json.dump(dict(SCHEDULER, _class_name=scheduler, prediction_type="epsilon", **more), open(args.out / "scheduler" / "scheduler_config.json", "w"), indent=2)
    index = dict(_class_name="StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline", scheduler=["diffusers", scheduler], unet=["diffusers", "UNet2DConditionModel"],
                 vae=["diffusers", "AutoencoderKL"], text_encoder=["transformers", "CLIPTextModel"], tokenizer=["transformers", "CLIPTokenizer"])
    if xl:
        index |= dict(text_encoder_2=["transformers", "CLIPTextModelWithProjection"], tokenizer_2=["transformers", "CLIPTokenizer"], force_zeros_for_empty_prompt=True)
    json.dump(index, open(args.out / "model_index.json", "w"), indent=2)


if __name__ == "__main__":
    main()
