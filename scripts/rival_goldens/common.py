"""What all golden loops share: random numbers, pipelines, and the file that is written."""

import json
import sys
import types

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
PROMPT, NEGATIVE = "a corgi wearing a tiny hat", "blurry, low quality, watermark"


class Dice:
    """SplitMix64, as crates/generation/src/dice.rs."""

    def __init__(self, seed, stage, step):
        self.state = (seed + GOLDEN * (1 + (stage << 32) + step)) & MASK

    def bits(self):
        self.state = (self.state + GOLDEN) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n):
        return self.bits() % n


class Run:
    """What one golden holds."""

    def __init__(self, **spec):
        self.spec, self.tensors, self.generator = spec, {}, torch.Generator().manual_seed(1234)

    def draw(self, *shape):
        noise = torch.randn(shape, generator=self.generator)
        self.tensors[f"draws.{sum(k.startswith('draws.') for k in self.tensors)}"] = noise
        return noise.clone()

    def latents(self, stage, i, x):
        if self.spec["steps"] > 6 and i % 3:
            return  # Enough to see where a difference begins.
        self.tensors[f"stage{stage}.latents.{i}"] = x.clone()

    def save(self, out, name):
        tensors = {k: v.detach().float().contiguous() for k, v in self.tensors.items()}
        save_file(tensors, out / f"{name}.safetensors", metadata={"spec": json.dumps(self.spec)})
        print(f"{name}: {len(tensors)} tensors, rms of the result {self.tensors['final_latents'].square().mean().sqrt():.3f}")


def pipe(kind, folder, scheduler):
    extra = {}
    if kind is not diffusers.StableDiffusionXLPipeline:
        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    found = kind.from_pretrained(folder, **extra)
    found.scheduler = scheduler.from_pretrained(folder, subfolder="scheduler")
    found.set_progress_bar_config(disable=True)
    return found


def embedded(p, xl):
    if not xl:
        text, empty = p.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
        return torch.cat([empty, text]), None
    text, empty, pooled, empty_pooled = p.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=True, negative_prompt=NEGATIVE)
    return torch.cat([empty, text]), torch.cat([empty_pooled, pooled])


def guided(p, x, t, texts, pooled, w, size):
    added = None
    if pooled is not None:
        h, width = size
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[h, width, 0, 0, h, width]] * 2, dtype=torch.float32)}
    u, c = p.unet(torch.cat([x, x]), t, encoder_hidden_states=texts, added_cond_kwargs=added).sample.chunk(2)
    return u + w * (c - u)


class Torch(types.ModuleType):
    """The torch module as official code sees it, with what is set on it in place of its own."""

    def __init__(self, **own):
        super().__init__("torch")
        self.__dict__.update(own)

    def __getattr__(self, name):
        return getattr(torch, name)


def official(folder):
    """Puts the checkout in `folder` first among what is imported; modules of another checkout under the same names are forgotten."""
    for name in [name for name in sys.modules if name.split(".")[0] in {"model", "pipelines", "source_override", "utils"}]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))


def drawn_posteriors(run):
    """Samples of the autoencoder's posterior take their noise from `draws`."""
    diffusers.models.autoencoders.vae.randn_tensor = lambda shape, **_: run.draw(*shape)


def enlarged(image, side):
    """Pillow's bicubic on an image `(h, w, 3)` of floats in [0, 1], channel by channel and without rounding to bytes; clamped as bytes are."""
    channels = [np.asarray(Image.fromarray(image[..., c].astype(np.float32), mode="F").resize((side, side), Image.BICUBIC)) for c in range(3)]
    return np.clip(np.stack(channels, -1), 0, 1)


def unused(*names):
    """Empty modules in place of ones that official code imports and does not need here."""
    for name in names:
        sys.modules.setdefault(name, types.ModuleType(name))
