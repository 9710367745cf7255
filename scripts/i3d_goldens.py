#!/usr/bin/env python3
"""Writes what a PyTorch I3D on hash-made weights says of formula videos: `i3d.safetensors` of `crates/metrics/tests/data`; and two tiny
programs as `torch.jit.save` leaves them, `torch_script.pt` and `torch_traced.pt`.

    python scripts/i3d_goldens.py [DATA_DIR]
    python scripts/i3d_goldens.py --programs [DATA_DIR]    # the programs alone

The network is written from the published architecture (Carreira & Zisserman) with the layers that PyTorch has; names and shapes are
those of `i3d_pretrained_400.pt`. Weights and frames follow the formulas of the folder's README. Needs torch and safetensors.
"""

import io
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIXED = {
    "3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64), "4b": (192, 96, 208, 16, 48, 64), "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64), "4e": (112, 144, 288, 32, 64, 64), "4f": (256, 160, 320, 32, 128, 128), "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


def hashed(name, n):
    h = 0xCBF29CE484222325
    for byte in f"fid-a:{name}".encode():
        h = ((h ^ byte) * 0x100000001B3) & ((1 << 64) - 1)
    with np.errstate(over="ignore"):
        z = np.uint64(h) + (np.arange(n, dtype=np.uint64) + np.uint64(1)) * GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def weight(name, shape):
    s = 2 * (hashed(name, math.prod(shape)) >> np.uint64(40)).astype(np.float64) * 2.0**-24 - 1
    if name.endswith("conv3d.weight"):
        s = s * math.sqrt(6 / math.prod(shape[1:]))
    elif name.endswith("bn.weight"):
        s = 1 + s / 4
    elif name.endswith("running_var"):
        s = 1 + 0.4 * s
    else:
        s = 0.1 * s
    return torch.from_numpy(s.astype(np.float32).reshape(shape))


def frame(seed, height, width):
    x, y, c = np.meshgrid(np.arange(width), np.arange(height), np.arange(3), indexing="xy")
    t = (x * (3 + seed % 5) + y * (2 + seed % 7) + 29 * c + ((x * x + y * y) >> 5)) & 511
    triangle = np.where(t < 256, t, 511 - t)
    noise = (hashed(f"image{seed}", 3 * height * width) >> np.uint64(56)).astype(np.int64).reshape(height, width, 3)
    return ((3 * triangle + noise) >> 2).astype(np.uint8)


def same(x, kernel, stride):
    """TensorFlow's SAME padding with zeros, asymmetric where it is odd; the last axis comes first in F.pad."""
    pads = []
    for n, k, s in reversed(list(zip(x.shape[2:], kernel, stride))):
        total = max(k - s, 0) if n % s == 0 else max(k - n % s, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class I3d(torch.nn.Module):
    def __init__(self, width, classes, epsilon):
        super().__init__()
        c = lambda full: max(1, int(full * width + 0.5))
        self.epsilon, self.units = epsilon, {}
        self.unit("Conv3d_1a_7x7", 3, c(64), 7, 2)
        self.unit("Conv3d_2b_1x1", c(64), c(64), 1, 1)
        self.unit("Conv3d_2c_3x3", c(64), c(192), 3, 1)
        n = c(192)
        for name, outputs in MIXED.items():
            b0, b1a, b1b, b2a, b2b, b3b = map(c, outputs)
            for branch, a, b, k in [("b0", n, b0, 1), ("b1a", n, b1a, 1), ("b1b", b1a, b1b, 3), ("b2a", n, b2a, 1), ("b2b", b2a, b2b, 3), ("b3b", n, b3b, 1)]:
                self.unit(f"Mixed_{name}.{branch}", a, b, k, 1)
            n = b0 + b1b + b2b + b3b
        self.logits = weight("logits.conv3d.weight", (classes, n, 1, 1, 1)), weight("logits.conv3d.bias", (classes,))

    def unit(self, name, a, b, kernel, stride):
        conv = weight(f"{name}.conv3d.weight", (b, a, kernel, kernel, kernel))
        bn = [weight(f"{name}.bn.{part}", (b,)) for part in ("running_mean", "running_var", "weight", "bias")]
        self.units[name] = conv, bn, (kernel,) * 3, (stride,) * 3

    def run(self, name, x):
        conv, bn, kernel, stride = self.units[name]
        return F.relu(F.batch_norm(F.conv3d(same(x, kernel, stride), conv, stride=stride), *bn, eps=self.epsilon))

    def pool(self, x, kernel, stride):
        return F.max_pool3d(same(x, kernel, stride), kernel, stride)

    def forward(self, x):
        sizes = []
        x = self.pool(self.run("Conv3d_1a_7x7", x), (1, 3, 3), (1, 2, 2))
        x = self.pool(self.run("Conv3d_2c_3x3", self.run("Conv3d_2b_1x1", x)), (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name == "4b":
                x = self.pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "5b":
                x = self.pool(x, (2, 2, 2), (2, 2, 2))
            at = f"Mixed_{name}."
            branches = [self.run(at + "b0", x), self.run(at + "b1b", self.run(at + "b1a", x)), self.run(at + "b2b", self.run(at + "b2a", x)),
                        self.run(at + "b3b", self.pool(x, (3, 3, 3), (1, 1, 1)))]
            x = torch.cat(branches, 1)
            sizes.append(tuple(x.shape[2:]))
        # 2 × 7 × 7 at 224 pixels.
        x = F.avg_pool3d(x, (2, *x.shape[3:]), stride=1)
        return F.conv3d(x, *self.logits).mean(2).flatten(1), sizes


def lvdm(video, side):
    return F.interpolate(video / 255.0, size=(side, side), mode="bilinear", align_corners=False) * 2 - 1


def videogpt(video, side):
    h, w = video.shape[-2:]
    scale = side / min(h, w)
    size = (side, math.ceil(w * scale)) if h < w else (math.ceil(h * scale), side)
    x = F.interpolate(video / 255.0, size=size, mode="bilinear", align_corners=False)
    top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
    return (x[:, :, top : top + side, left : left + side] - 0.5) * 2


class Unit(torch.nn.Module):
    def __init__(self, inputs, first, epsilon):
        super().__init__()
        self.conv3d = torch.nn.Conv3d(inputs, 2, 1, bias=False)
        self.bn = torch.nn.BatchNorm3d(2, eps=epsilon)
        self.conv3d.weight.data = torch.arange(2.0 * inputs).reshape(2, inputs, 1, 1, 1) * first

    def forward(self, x):
        return torch.relu(self.bn(self.conv3d(x)))


class Units(torch.nn.Module):
    """Attributes of many kinds beside the modules."""

    def __init__(self, epsilon):
        super().__init__()
        self.strides, self.factors, self.pair, self.nothing, self.name = [1, 2], [0.5, 1.5], (1, 2), None, "units"
        self.a = Unit(3, 1.0, epsilon)
        self.seq = torch.nn.Sequential(Unit(2, -1.0, epsilon))

    def forward(self, x):
        return self.seq(self.a(x)) * self.factors[0] + self.strides[0] + self.pair[1]


def programs(out):
    for name, program in [
        ("torch_script", torch.jit.script(Units(1e-3).eval())),
        ("torch_traced", torch.jit.trace(Units(1e-5).eval(), torch.zeros(1, 3, 2, 2, 2))),
    ]:
        saved = io.BytesIO()
        torch.jit.save(program, saved)
        # Without what says where this script lies, which is most of it, and without the inputs of a trace.
        with zipfile.ZipFile(saved) as source, zipfile.ZipFile(out / f"{name}.pt", "w") as kept:
            for entry in source.infolist():
                if not (entry.filename.endswith(".debug_pkl") or "traced_inputs" in entry.filename):
                    kept.writestr(entry, source.read(entry), entry.compress_type)
        torch.jit.load(str(out / f"{name}.pt"))


def main(out):
    torch.set_num_threads(1)
    tensors = {}
    clip = lambda seed, n, h, w: torch.from_numpy(np.stack([frame(seed + i, h, w) for i in range(n)])).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        for name, width, classes, epsilon, side, videos in [
            ("small", 0.125, 10, 1e-5, 64, [(1, 16), (40, 9), (70, 21)]),
            ("odd", 0.125, 10, 1e-3, 71, [(5, 11)]),
            ("full", 1.0, 400, 1e-5, 224, [(9, 10)]),
        ]:
            network = I3d(width, classes, epsilon)
            for seed, n in videos:
                logits, sizes = network(clip(seed, n, side, side).div(255).mul(2).sub(1).permute(1, 0, 2, 3)[None])
                tensors[f"{name}.{seed}.{n}"] = logits[0].contiguous()
                print(name, n, sizes)
        if width == 1.0:
            convs = sum(conv.numel() for conv, *_ in network.units.values()) + sum(part.numel() for part in network.logits)
            assert (len(network.units), convs, sum(len(bn[0]) for _, bn, *_ in network.units.values())) == (57, 12682704, 7280), convs
        for h, w in [(48, 90), (64, 33), (40, 40), (30, 60)]:
            video = clip(3, 1, h, w)
            tensors[f"lvdm.{h}x{w}"] = lvdm(video, 32)[0].contiguous()
            tensors[f"videogpt.{h}x{w}"] = videogpt(video, 32)[0].contiguous()
    save_file(tensors, out / "i3d.safetensors")


if __name__ == "__main__":
    folder = next((Path(a) for a in sys.argv[1:] if a != "--programs"), Path(__file__).parent.parent / "crates" / "metrics" / "tests" / "data")
    programs(folder)
    if "--programs" not in sys.argv:
        main(folder)
