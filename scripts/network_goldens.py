#!/usr/bin/env python3
"""Writes the tiny CLIP and DINOv2 checkpoints of `crates/metrics/tests/data/networks` and what
transformers, Pillow and PyTorch make of them.

    python scripts/network_goldens.py CLIP_VOCABULARY_FOLDER OUT_DIR

CLIP_VOCABULARY_FOLDER holds OpenAI's `vocab.json` and `merges.txt`; the tiny checkpoints use their
first merges only.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

MASK = (1 << 64) - 1
MERGES = 120
TEXTS = [
    "a photo of a cat",
    "",
    "Two DOGS, three caf\u00e9s \u2014 and 42 \U0001f408's tails!",
    "a <|endoftext|> in the middle",
    "the quick brown fox jumps over the lazy dog; " * 9,
]


def hashed(name, index):
    h = 0xCBF29CE484222325
    for byte in f"fid-a:{name}".encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    z = (h + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def formula_image(seed, height, width):
    """The image of `crates/metrics/tests/data/README.md`."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            for c in range(3):
                t = (x * (3 + seed % 5) + y * (2 + seed % 7) + 29 * c + ((x * x + y * y) >> 5)) & 511
                triangle = t if t < 256 else 511 - t
                pixels[y, x, c] = (3 * triangle + (hashed(f"image{seed}", 3 * (y * width + x) + c) >> 56)) >> 2
    return Image.fromarray(pixels)


def randomise(model, seed, dtype):
    """Weights large enough that softmax, activations and norms all matter, exactly representable in dtype."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in key or "layrnorm" in key or "lambda1" in key:
                value = (1 if key.endswith("weight") else 0.5 if "lambda1" in key else 0) + 0.2 * noise
            elif "embedding" in key and p.dim() < 4 or key.endswith("_token"):
                value = noise
            elif p.dim() == 1:
                value = 0.2 * noise
            elif p.dim() == 0:
                value = p
            else:
                value = noise * (2 if "q_proj" in key or "k_proj" in key else 1) / p[0].numel() ** 0.5
            p.copy_(value.to(dtype).float())
    return model.eval()


def cast(folder, dtype):
    """Rewrites the weight files in another type; the values are representable in it."""
    for file in folder.glob("*.safetensors"):
        save_file({k: v.to(dtype) for k, v in load_file(file).items()}, file, metadata={"format": "pt"})


def small_vocabulary(source, folder):
    """OpenAI's bytes, first merges and special tokens, numbered anew."""
    lines = (source / "merges.txt").read_text().split("\n")
    merges = [line for line in lines[1:] if line][:MERGES]
    full = json.loads((source / "vocab.json").read_text())
    tokens = sorted(full, key=full.get)[:512] + [line.replace(" ", "") for line in merges]
    vocabulary = {token: i for i, token in enumerate(tokens + ["<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join([lines[0], *merges]) + "\n")
    return vocabulary


def clip(source, out, name, seed, real_eos, dtype, image_size, patch, **save):
    folder = out / name
    vocabulary = small_vocabulary(source, folder)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[tuple(l.split()) for l in (folder / "merges.txt").read_text().split("\n")[1:] if l])
    texts = list(TEXTS)
    if real_eos:
        # A token above the end token: the largest id no longer marks the end.
        tokenizer.add_tokens(["<extra>"])
        texts.append("an <extra> token")
        tokenizer.save_pretrained(folder)
        for unused in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            (folder / unused).unlink(missing_ok=True)
    end = vocabulary["<|endoftext|>"]
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(vocabulary) + real_eos)
    text.update(eos_token_id=end if real_eos else 2, bos_token_id=vocabulary["<|startoftext|>"] if real_eos else 0)
    vision = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=3, image_size=image_size, patch_size=patch)
    model = randomise(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)), seed, dtype)
    model.save_pretrained(folder, **save)
    cast(folder, dtype)
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    processor = CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size})
    pixels = processor(images=[formula_image(2, 96, 128), formula_image(5, 61, 37)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        by_text = model.get_text_features(**encoded)
        by_image = model.get_image_features(pixel_values=pixels)
    features = {"text": by_text, "image": by_image}
    features = {k: getattr(v, "pooler_output", v).contiguous() for k, v in features.items()}
    kept = [ids[mask.bool()].tolist() for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"])]
    # torchmetrics' formula before its mean: every image against the first two texts.
    score = 100 * F.cosine_similarity(features["image"], features["text"][:2])
    return {f"{name}.{k}": v for k, v in features.items()} | {f"{name}.cosine": score}, {"texts": texts, "ids": kept}


def positions(table, grid, offset):
    """Position embeddings `(1, 1 + m², d)` for a grid, as DINOv2's own code (offset) or transformers (size) makes them."""
    m = round((table.shape[1] - 1) ** 0.5)
    if grid == m:
        return table
    square = table[:, 1:].reshape(1, m, m, -1).permute(0, 3, 1, 2)
    if offset:
        square = F.interpolate(square, scale_factor=((grid + 0.1) / m, (grid + 0.1) / m), mode="bicubic")
    else:
        square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    assert square.shape[-2:] == (grid, grid)
    return torch.cat([table[:, :1], square.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)], 1)


def dinov2_forward(file, config, pixels, offset):
    """The class token after the last norm, from the tensors of the checkpoint file."""
    w = {k: v.float() for k, v in load_file(file).items()}
    linear = lambda x, at: F.linear(x, w[at + ".weight"], w[at + ".bias"])
    norm = lambda x, at: F.layer_norm(x, x.shape[-1:], w[at + ".weight"], w[at + ".bias"], config.layer_norm_eps)
    patch, heads = config.patch_size, config.num_attention_heads
    at = "embeddings.patch_embeddings.projection"
    x = F.conv2d(pixels, w[at + ".weight"], w[at + ".bias"], stride=patch).flatten(2).transpose(1, 2)
    x = torch.cat([w["embeddings.cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + positions(w["embeddings.position_embeddings"], pixels.shape[-1] // patch, offset)
    for i in range(config.num_hidden_layers):
        at = f"encoder.layer.{i}"
        h = norm(x, at + ".norm1")
        split = lambda t: t.unflatten(-1, (heads, -1)).transpose(1, 2)
        q, k, v = (split(linear(h, f"{at}.attention.attention.{n}")) for n in ("query", "key", "value"))
        h = ((q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5).softmax(-1) @ v
        h = linear(h.transpose(1, 2).flatten(2), at + ".attention.output.dense")
        x = x + h * w[at + ".layer_scale1.lambda1"]
        h = norm(x, at + ".norm2")
        if config.use_swiglu_ffn:
            gate, value = linear(h, at + ".mlp.weights_in").chunk(2, -1)
            h = linear(F.silu(gate) * value, at + ".mlp.weights_out")
        else:
            h = linear(F.gelu(linear(h, at + ".mlp.fc1")), at + ".mlp.fc2")
        x = x + h * w[at + ".layer_scale2.lambda1"]
    return norm(x, "layernorm")[:, 0]


def squash(image, side):
    """`image.resize((side, side), BICUBIC)` of any Pillow before 13, which alone may run the vertical pass first."""
    return image.resize((side, image.height), Image.BICUBIC).resize((side, side), Image.BICUBIC)


def dinov2_preprocess(image, side, clean):
    """dgm-eval's transforms, written with the calls they end in."""
    if clean:
        channels = [Image.fromarray(c) for c in np.moveaxis(np.asarray(image).astype(np.float32), 2, 0)]
        planes = np.stack([np.asarray(squash(c, side)).clip(0, 255) for c in channels])
    else:
        planes = np.moveaxis(np.asarray(squash(image, side)), 2, 0).astype(np.float32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (torch.from_numpy(planes) / 255 - mean) / std


def dinov2(out, name, seed, dtype, **config):
    folder = out / name
    config = Dinov2Config(image_size=70, patch_size=14, num_attention_heads=3, hidden_size=48, mlp_ratio=2, **config)
    model = randomise(Dinov2Model(config), seed, dtype)
    model.save_pretrained(folder)
    cast(folder, dtype)
    tensors = {}
    # 3 × 3 patches reduce the 5 × 5 position embeddings, 5 × 5 keep them, 16 × 16 enlarge them.
    for side in (42, 70, 224):
        pixels = torch.stack([dinov2_preprocess(formula_image(2, 96, 128), side, False), dinov2_preprocess(formula_image(5, 61, 37), side, False)])
        with torch.no_grad():
            own, theirs = dinov2_forward(folder / "model.safetensors", config, pixels, False), model(pixel_values=pixels).pooler_output
            error = ((own - theirs).abs().max() / theirs.square().mean().sqrt()).item()
            assert error < 1e-5, error
            tensors[f"{name}.{side}"] = dinov2_forward(folder / "model.safetensors", config, pixels, True)
            apart = ((tensors[f"{name}.{side}"] - theirs).abs().max() / theirs.square().mean().sqrt()).item()
            print(f"{name} {side}: against transformers {error:.1e}, with the offset {apart:.1e}")
            tensors[f"{name}.{side}.size"] = theirs
    return tensors


def cmmd_preprocess(image, side):
    """Square crop, then Pillow's bicubic, then CLIP's statistics, as cmmd-pytorch loads and normalises."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    image = image.crop((left, top, left + short, top + short)).resize((side, side), Image.BICUBIC)
    keep = dict(do_resize=False, do_center_crop=False, do_rescale=False)
    planes = np.moveaxis(np.asarray(image).astype(np.float32) / 255.0, 2, 0)
    return CLIPImageProcessorPil(**keep)(images=[planes], input_data_format="channels_first", return_tensors="pt")["pixel_values"][0]


def preprocessing():
    tensors = {}
    # Odd, 2:1 both ways, smaller and larger than the target, already the target.
    for i, (height, width) in enumerate([(61, 37), (64, 128), (130, 65), (20, 17), (31, 31), (300, 211)]):
        image = formula_image(i + 1, height, width)
        for side in (31, 32):
            processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
            key = f"{i + 1}.{height}x{width}"
            tensors[f"clip{side}.{key}"] = processor(images=[image], return_tensors="pt")["pixel_values"][0]
            tensors[f"cmmd{side}.{key}"] = cmmd_preprocess(image, side)
        for name, clean in (("dinov2", False), ("dinov2clean", True)):
            # Every eleventh row and column of 224.
            tensors[f"{name}.{key}"] = dinov2_preprocess(image, 224, clean)[:, ::11, ::11]
    return {k: v.contiguous() for k, v in tensors.items()}


def main(source, out):
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    tensors, texts = {}, {}
    for name, more in {
        "clip": dict(seed=1, real_eos=False, dtype=torch.float32, image_size=28, patch=7),
        "clip-sharded": dict(seed=2, real_eos=True, dtype=torch.bfloat16, image_size=28, patch=14, max_shard_size="200KB"),
    }.items():
        features, texts[name] = clip(source, out, name, **more)
        tensors |= features
    tensors |= dinov2(out, "dinov2", 3, torch.float16, num_hidden_layers=3)
    tensors |= dinov2(out, "dinov2-swiglu", 4, torch.float16, num_hidden_layers=2, use_swiglu_ffn=True)
    table = torch.randn(1, 1 + 37 * 37, 3, generator=torch.Generator().manual_seed(5))
    tensors |= {"positions.37": table, "positions.16": positions(table, 16, True), "positions.16.size": positions(table, 16, False)}
    tensors |= preprocessing()
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "goldens.safetensors")
    (out / "texts.json").write_text(json.dumps(texts, ensure_ascii=False, indent=1) + "\n")
    for generation in out.glob("*/generation_config.json"):
        generation.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
