#!/usr/bin/env python3
"""Trains what makes the pocket checkpoint move, and the network that judges it: AnimateDiff's motion modules and a narrow I3D.

    scalebench dataset --split train --views 3 --frames 16 --size 64 --out DATA
    scalebench dataset --split reference --views 1 --frames 16 --size 64 --out TEST
    python train_pocket_motion.py i3d    --data DATA --test TEST --work WORK [--minutes M]
    python train_pocket_motion.py encode --data DATA --work WORK
    python train_pocket_motion.py motion --data DATA --work WORK [--minutes M]
    python train_pocket_motion.py export --work WORK --out datasets
    python train_pocket_motion.py card   --test TEST --out datasets [--run RUN] [--remark TEXT]

The modules (diffusers' `MotionAdapter`) are trained on the frozen U-Net of datasets/pocket, on videos whose captions say what moves and
how. Each stage appends to WORK/<stage>.jsonl, writes a checkpoint every few minutes and resumes from it; `export` takes what there is.
Needs torch, diffusers and transformers.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from i3d_goldens import MIXED, same
from train_pocket import CAPTION_DROPOUT, Ema, Muon, Stage, log_rows

MOTIONS = ["moves left", "moves right", "moves up", "moves down", "grows", "shrinks", "spins", "bounces", "blinks"]
GROUPS = ["smileys & emotion", "people & body", "animals & nature", "food & drink", "travel & places", "activities", "objects"]
I3D_CONFIG = dict(model_type="i3d", width=0.125, num_classes=len(MOTIONS) + len(GROUPS), bn_epsilon=1e-5, side=64)
ADAPTER_CONFIG = dict(
    block_out_channels=(32, 64, 96, 128), motion_layers_per_block=2, motion_num_attention_heads=4, motion_norm_num_groups=16,
    motion_max_seq_length=16, use_motion_mid_block=True,
)


class Videos:
    """What `scalebench dataset --frames` wrote: videos `(n, frames, side, side, 3)`, their motions, groups and captions."""

    def __init__(self, folder):
        folder = Path(folder)
        lines = lambda name: [line.rstrip("\n").split("\t") for line in open(folder / name, encoding="utf-8")]
        info, names, rows = json.load(open(folder / "dataset.json")), lines("names.tsv"), lines("captions.tsv")
        self.frames, self.size, n = info["frames"], info["size"], len(rows)
        self.emoji = np.array([int(row[0]) for row in rows])
        self.motion = torch.tensor([int(row[2]) for row in rows])
        self.group = torch.tensor([GROUPS.index(names[i][2]) for i in self.emoji])
        self.captions = [row[3] for row in rows]
        self.pixels = np.memmap(folder / "images.u8", dtype=np.uint8, mode="r", shape=(n, self.frames, self.size, self.size, 3))

    def __len__(self):
        return len(self.captions)

    def batch(self, chosen):
        """`(n, 3, frames, side, side)` in [-1, 1]."""
        x = torch.from_numpy(np.stack([self.pixels[i] for i in chosen]).astype(np.float32))
        return x.permute(0, 4, 1, 2, 3).contiguous() / 127.5 - 1


class Unit(nn.Module):
    def __init__(self, a, b, kernel, stride=1):
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(a, b, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(b, eps=I3D_CONFIG["bn_epsilon"])
        nn.init.kaiming_normal_(self.conv3d.weight, mode="fan_out")

    def forward(self, x):
        return F.relu(self.bn(self.conv3d(same(x, self.kernel, self.stride))))


def pool(x, kernel, stride):
    return F.max_pool3d(same(x, kernel, stride), kernel, stride)


class Mixed(nn.Module):
    def __init__(self, n, b0, b1a, b1b, b2a, b2b, b3b):
        super().__init__()
        self.b0, self.b1a, self.b1b = Unit(n, b0, 1), Unit(n, b1a, 1), Unit(b1a, b1b, 3)
        self.b2a, self.b2b, self.b3b = Unit(n, b2a, 1), Unit(b2a, b2b, 3), Unit(n, b3b, 1)

    def forward(self, x):
        pooled = pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class I3d(nn.Module):
    """The network of crates/metrics/src/i3d.rs, with its names."""

    def __init__(self):
        super().__init__()
        c = lambda full: max(1, int(full * I3D_CONFIG["width"] + 0.5))
        self.Conv3d_1a_7x7, self.Conv3d_2b_1x1, self.Conv3d_2c_3x3 = Unit(3, c(64), 7, 2), Unit(c(64), c(64), 1), Unit(c(64), c(192), 3)
        n = c(192)
        for name, outputs in MIXED.items():
            outputs = list(map(c, outputs))
            self.add_module(f"Mixed_{name}", Mixed(n, *outputs))
            n = outputs[0] + outputs[2] + outputs[4] + outputs[5]
        self.logits = nn.Module()
        self.logits.conv3d = nn.Conv3d(n, I3D_CONFIG["num_classes"], 1)

    def forward(self, x):
        x = pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name in ("4b", "5b"):
                x = pool(x, *{"4b": ((3, 3, 3), (2, 2, 2)), "5b": ((2, 2, 2), (2, 2, 2))}[name])
            x = self.get_submodule(f"Mixed_{name}")(x)
        return self.logits.conv3d(F.avg_pool3d(x, (2, *x.shape[3:]), stride=1)).mean(2).flatten(1)


def judged(logits):
    """The logits of the nine motions and those of the seven groups."""
    return logits[:, : len(MOTIONS)], logits[:, len(MOTIONS) :]


@torch.no_grad()
def accuracy(model, data, most=None):
    """Shares of videos whose motion, and whose group, come first."""
    model.eval()
    chosen = np.random.default_rng(3).permutation(len(data))[:most]
    right = torch.zeros(2)
    for part in np.array_split(chosen, math.ceil(len(chosen) / 64)):
        motion, group = judged(model(data.batch(part)))
        right += torch.stack([(motion.argmax(1) == data.motion[part]).sum(), (group.argmax(1) == data.group[part]).sum()])
    return [round(x, 4) for x in (right / len(chosen)).tolist()]


def train_i3d(args):
    data, test = Videos(args.data), Videos(args.test)
    model = I3d()
    print("parameters:", sum(p.numel() for p in model.parameters()), flush=True)
    opt = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-2, fused=True)
    stage = Stage("i3d", args, dict(model=model, opt=opt))
    going, n = True, args.batch or 16
    while going:
        model.train()
        for group in opt.param_groups:
            group["lr"] = stage.lr(3e-3)
        chosen = stage.rng.integers(len(data), size=n)
        motion, group = judged(model(data.batch(chosen)))
        loss = F.cross_entropy(motion, data.motion[chosen]) + F.cross_entropy(group, data.group[chosen], label_smoothing=0.05)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        more = {}
        if (stage.step + 1) % 200 == 0:
            more = dict(zip(["test_motion", "test_group"], accuracy(model, test, 256)))
        going = stage.tick(loss, n, **more)
    print("test:", accuracy(model, test), flush=True)


class Pocket:
    """The frozen checkpoint."""

    def __init__(self, folder):
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        folder = Path(folder)
        self.folder = folder
        self.vae = AutoencoderKL.from_pretrained(folder / "vae").float().eval()
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet").float().eval()
        self.schedule = DDPMScheduler.from_pretrained(folder / "scheduler")

    @torch.no_grad()
    def embed(self, texts):
        tokens = lambda part: self.tokenizer(part, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return torch.cat([self.text(tokens(texts[i : i + 128])).last_hidden_state for i in range(0, len(texts), 128)])


@torch.no_grad()
def encode(args):
    """Latents of videos in a random order, as far as it gets: WORK/latents.f16 and, appended in the same order, WORK/latents.txt."""
    data, pocket, work = Videos(args.data), Pocket(args.pocket), Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    known = {int(line) for line in (work / "latents.txt").read_text().split()} if (work / "latents.txt").exists() else set()
    done = len(known)
    side = data.size // 2 ** (len(pocket.vae.config.block_out_channels) - 1)
    video = data.frames * 4 * side * side * 2
    with open(work / "latents.f16", "ab") as latents, open(work / "latents.txt", "a") as names:
        latents.truncate(done * video)
        for i in [i for i in np.random.default_rng(5).permutation(len(data)) if i not in known][: args.videos]:
            x = data.batch([i])[0].permute(1, 0, 2, 3).contiguous(memory_format=torch.channels_last)
            z = pocket.vae.encode(x).latent_dist.mean * pocket.vae.config.scaling_factor
            latents.write(z.half().contiguous().numpy().tobytes())
            latents.flush()
            names.write(f"{i}\n")
            names.flush()


class Latents:
    """What `encode` has written so far."""

    def __init__(self, work, frames, side):
        self.work, self.video = Path(work), (frames, 4, side, side)
        self.look()

    def look(self):
        lines = (self.work / "latents.txt").read_text().split("\n")[:-1]
        n = min(len(lines), (self.work / "latents.f16").stat().st_size // (2 * math.prod(self.video)))
        self.of = np.array([int(line) for line in lines[:n]])
        self.values = np.memmap(self.work / "latents.f16", dtype=np.float16, mode="r", shape=(n, *self.video))

    def batch(self, chosen):
        """`(n, 4, frames, side, side)`."""
        return torch.from_numpy(np.stack([self.values[i] for i in chosen]).astype(np.float32)).transpose(1, 2).contiguous()


def motion_unet(pocket, adapter):
    from diffusers import UNetMotionModel

    unet = UNetMotionModel.from_unet2d(pocket.unet, adapter)
    unet.freeze_unet2d_params()
    return unet


def new_adapter():
    from diffusers import MotionAdapter

    torch.manual_seed(7)
    adapter = MotionAdapter(**ADAPTER_CONFIG)
    for name, p in adapter.named_parameters():
        # The network begins as the one of images.
        if ".proj_out." in name:
            nn.init.zeros_(p)
    return adapter


def learnt(unet):
    """The motion modules' parameters by the names that they have in an adapter."""
    return {name: p for name, p in unet.named_parameters() if ".motion_modules." in name}


class Modules(nn.Module):
    """Motion modules alone, for averages and checkpoints."""

    def __init__(self, unet):
        super().__init__()
        self.names = list(learnt(unet))
        self.values = nn.ParameterList(learnt(unet).values())

    def named(self):
        return dict(zip(self.names, self.values))


def train_motion(args):
    data, pocket = Videos(args.data), Pocket(args.pocket)
    latents = Latents(args.work, data.frames, pocket.unet.config.sample_size)
    captions, empty = pocket.embed(data.captions), pocket.embed([""])[0]
    unet = motion_unet(pocket, new_adapter())
    modules = Modules(unet)
    print("parameters:", sum(p.numel() for p in modules.parameters()), flush=True)
    ema = Ema(modules, 0.998)
    named = modules.named()
    muon = Muon([p for p in named.values() if p.ndim == 2], args.lr)
    adam = torch.optim.AdamW([p for p in named.values() if p.ndim < 2], args.lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    schedule = pocket.schedule
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    stage = Stage("motion", args, dict(modules=modules, ema=ema, muon=muon, adam=adam))
    going, n = True, args.batch or 4
    while going:
        if stage.step % 100 == 0:
            latents.look()
        for group in muon.param_groups + adam.param_groups:
            group["lr"] = stage.lr(args.lr)
        chosen = stage.rng.integers(len(latents.of), size=n)
        x = latents.batch(chosen)
        told = captions[latents.of[chosen]].clone()
        told[torch.rand(n) < CAPTION_DROPOUT] = empty
        # One noise level for all frames of a video; spread evenly over a batch.
        t = ((torch.rand(1) + (torch.arange(n) + torch.rand(n)) / n) % 1 * 1000).long().clamp(max=999)
        noise = torch.randn_like(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            found = unet(schedule.add_noise(x, noise, t), t, told.repeat_interleave(x.shape[2], 0)).sample
        error = (found.float() - noise).square().mean((1, 2, 3, 4))
        # As of velocities, with low noise capped as by Min-SNR (Hang et al. 2023): high noise is where frames settle what they have in common.
        loss = (error * (snr[t] + 1).clamp(max=5.0) / snr[t]).mean()
        for p in modules.parameters():
            p.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        muon.step()
        adam.step()
        ema.update(modules)
        going = stage.tick(loss, n, every=args.every, mse=round(error.mean().item(), 4), lr=round(adam.param_groups[0]["lr"], 6), encoded=len(latents.of))


@torch.no_grad()
def export(args):
    """Writes the averaged modules (f16) and the I3D (f32) with what a reader of the folders needs."""
    from diffusers import DDIMScheduler
    from safetensors.torch import save_file

    work, out = Path(args.work), Path(args.out)
    versions = dict(torch=torch.__version__, device="cpu", threads=torch.get_num_threads())

    def training(name, folder, saved, **more):
        rows = log_rows(work, name)
        mean = lambda key: round(float(np.mean([row[key] for row in rows[-5:] if key in row])), 5)
        text = dict(steps=saved["step"], videos=saved["images"], seconds=round(saved["seconds"]), loss=mean("loss"), last=rows[-1], **more, versions=versions)
        (folder / "training.json").write_text(json.dumps(text, indent=2) + "\n")

    if (work / "motion.pt").exists():
        folder = out / "pocket-motion"
        saved = torch.load(work / "motion.pt", weights_only=False)
        pocket = Pocket(args.pocket)
        adapter = new_adapter()
        modules = Modules(motion_unet(pocket, adapter))
        modules.load_state_dict(saved["ema"]["model"])
        state = adapter.state_dict() | modules.named()
        adapter.load_state_dict(state)
        adapter.save_config(folder)
        # The table of positions is no parameter: it stays as it is.
        kept = {k: (v.float() if k.endswith(".pe") else v.half()).contiguous() for k, v in adapter.state_dict().items()}
        save_file(kept, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        DDIMScheduler.from_pretrained(pocket.folder / "scheduler").save_config(folder / "scheduler")
        training("motion", folder, saved, parameters=sum(p.numel() for p in modules.parameters()))
    if (work / "i3d.pt").exists():
        folder = out / "pocket-i3d"
        folder.mkdir(parents=True, exist_ok=True)
        saved = torch.load(work / "i3d.pt", weights_only=False)
        state = {k: v.contiguous() for k, v in saved["model"].items() if not k.endswith("num_batches_tracked")}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(I3D_CONFIG, indent=2) + "\n")
        training("i3d", folder, saved)


def fvd(a, b):
    """Fréchet distance of two sets of logits."""
    a, b = a.double(), b.double()
    values = torch.linalg.eigvals(torch.cov(a.T) @ torch.cov(b.T)).real.clamp(min=0)
    return ((a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum() - 2 * values.sqrt().sum()).item()


def looked_at(model, videos):
    """Logits of videos `(n, 3, frames, h, w)` in [-1, 1], resized as the program does."""
    def small(x):
        frames = x.transpose(0, 1)
        if frames.shape[-1] != I3D_CONFIG["side"]:
            frames = F.interpolate(frames, size=(I3D_CONFIG["side"],) * 2, mode="bilinear", align_corners=False)
        return frames.transpose(0, 1)

    return torch.cat([model(small(x)[None]) for x in videos])


def stored(cell):
    """Videos of a run's cell and their prompts."""
    from PIL import Image, ImageSequence

    prompts = [json.loads(line)["prompt"] for line in open(cell / "manifest.jsonl")]
    files = sorted((cell / "images").glob("*.png"))
    read = lambda file: np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(file))])
    return [torch.from_numpy(read(file)).permute(3, 0, 1, 2).float() / 127.5 - 1 for file in files], prompts[: len(files)]


@torch.no_grad()
def card(args):
    """Measures both folders, on other placements and on a run of experiments/video.yaml, and writes their README.md and the grid."""
    from PIL import Image
    from safetensors.torch import load_file

    out, test = Path(args.out), Videos(args.test)
    model = I3d()
    model.load_state_dict(load_file(out / "pocket-i3d" / "model.safetensors"), strict=False)
    model.eval()
    size = lambda name: sum(f.stat().st_size for f in (out / name).rglob("*") if f.is_file() and f.suffix not in (".png", ".md")) / 1e6
    told = lambda name: json.load(open(out / name / "training.json"))

    half = np.random.default_rng(3).permutation(len(test))
    a, b = test.batch(half[:256]), test.batch(half[256:512])
    other = looked_at(model, a)
    quarter = F.avg_pool3d(b, (1, 2, 2))
    changed = {
        "other emoji, as they are": b, "frames in another order": b[:, :, torch.from_numpy(np.random.default_rng(4).permutation(test.frames))],
        "frames backwards": b.flip(2), "the first frame, standing still": b[:, :, :1].expand_as(b),
        "the object four times, each at half its side": torch.cat([torch.cat([quarter] * 2, 4)] * 2, 3),
        "blurred: a mean of 5 by 5 pixels": F.avg_pool3d(F.pad(b, (2,) * 4 + (0, 0), mode="replicate"), (1, 5, 5), 1),
        "noise of a tenth of the range": (b + 0.2 * torch.randn(b.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1),
    }
    training = told("pocket-i3d")
    motion, group = accuracy(model, test)
    lines = [
        "# The pocket I3D", "",
        "Inception-v1 with kernels that reach over frames, at 1/8 of I3D's width, for 64×64 px, trained from scratch by `scripts/train_pocket_motion.py` on the",
        f"moving emoji (`datasets/README.md`) to tell their nine motions and seven groups: 9 + 7 logits, which FVD and KVD compare. f32, {size('pocket-i3d'):.1f} MB.",
        "Its figures rank methods on the pocket model; they compare with no published FVD.", "",
        "| steps | videos | hours | loss |", "| --- | --- | --- | --- |",
        f"| {training['steps']} | {training['videos']} | {training['seconds'] / 3600:.2f} | {training['loss']} |", "",
        f"PyTorch {training['versions']['torch']}, CPU, one thread of a machine that many programs filled: hours of the clock.", "",
        f"On {len(test)} videos of the reference split, of placements that it was not trained on, it tells {100 * motion:.1f} % of the motions (by chance 11.1 %) and",
        f"{100 * group:.1f} % of the groups.", "", "## What its FVD sees", "", "FVD of 256 renders to 256 renders of other emoji:", "", "| the second set | FVD |", "| --- | ---: |",
    ]
    lines += [f"| {name} | {fvd(other, looked_at(model, x)):.1f} |" for name, x in changed.items()]
    lines += ["", "Made by `python scripts/train_pocket_motion.py card`.", ""]
    (out / "pocket-i3d" / "README.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines), flush=True)

    training = told("pocket-motion")
    lines = [
        "# The pocket motion modules", "",
        "AnimateDiff's layout (diffusers' `MotionAdapter`) for the pocket checkpoint: a motion module after every residual block and its attention, the middle",
        f"block's too, {training['parameters'] / 1e6:.2f} M parameters, 16 frames, f16, averaged weights, {size('pocket-motion'):.1f} MB. Trained by `scripts/train_pocket_motion.py` on the moving",
        f"emoji (`datasets/README.md`), {training['last']['encoded']} videos of 64×64 px, with the U-Net, the autoencoder and the text encoder of `datasets/pocket` frozen; captions as \"cat face moves left\",",
        "10 % caption dropout, the pocket checkpoint's noise schedule (`scheduler/`). Its figures rank methods on this model; they say nothing about any other.", "",
        "| steps | videos | hours | loss |", "| --- | --- | --- | --- |",
        f"| {training['steps']} | {training['videos']} | {training['seconds'] / 3600:.2f} | {training['loss']} |", "",
        f"PyTorch {training['versions']['torch']}, CPU, one thread of a machine that many programs filled: hours of the clock. The loss was weighted by Min-SNR (gamma 5) for the first 1010 steps, since then as of velocities, with a peak rate of 0.002 in place of 0.001.", "",
    ]
    if args.run:
        lines += measured(args, model, test)
    lines += ["Made by `python scripts/train_pocket_motion.py card`.", ""]
    (out / "pocket-motion" / "README.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def measured(args, model, test):
    """What the pocket I3D says of the videos of a run, as lines of the card; the grid."""
    from PIL import Image

    rows, shown = [], None
    said = lambda prompts: torch.tensor([[prompt.endswith(words) for words in MOTIONS].index(True) for prompt in prompts])
    reference = dict(zip(test.captions, range(len(test))))
    for name in ["", "1x-direct-inf", "4x-direct-inf", "4x-scalecrafter"]:
        if name:
            videos, prompts = stored(Path(args.run) / "cells" / "pocket" / name)
            shown = shown or (videos, prompts)
        else:
            prompts = [json.loads(line)["prompt"] for line in open(Path(args.run) / "cells" / "pocket" / "1x-direct-inf" / "manifest.jsonl")]
            videos = list(test.batch([reference[prompt] for prompt in prompts]))
        motions, groups = judged(looked_at(model, videos))
        asked = said(prompts)
        wanted = test.group[[reference[prompt] for prompt in prompts]]
        steps = [(x[:, 1:] - x[:, :-1]).abs().mean() * 127.5 for x in videos]
        rows.append((name or "exact renders", len(videos), (motions.argmax(1) == asked).float().mean(), (groups.argmax(1) == wanted).float().mean(), np.mean(steps),
                     [int(((motions.argmax(1) == m) & (asked == m)).sum()) for m in range(9)], [int((asked == m).sum()) for m in range(9)],
                     torch.bincount(motions.argmax(1), minlength=9).tolist()))
    lines = [
        "![Exact renders and generations at base size](grid.png)", "",
        "*The first nine prompts at base size: frames 1, 6, 11 and 16 of the exact render, then of the generation. The prompt does not say where the object is placed.*", "",
        f"## Measured on {rows[1][1]} videos of the run in `reports/video`", "",
        "| videos | motion that the caption says, by the pocket I3D | group, by the same | mean step between frames, of 255 |", "| --- | ---: | ---: | ---: |",
    ]
    lines += [f"| {name} | {100 * m:.0f} % | {100 * g:.0f} % | {step:.2f} |" for name, _, m, g, step, *_ in rows]
    lines += ["", "| motion | videos | right, exact renders | right, 1× | called so, 1× |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [f"| {words} | {rows[1][6][m]} | {rows[0][5][m]} | {rows[1][5][m]} | {rows[1][7][m]} |" for m, words in enumerate(MOTIONS)]
    lines += ["", "By chance a ninth of the motions would be right.", "", *([args.remark, ""] if args.remark else [])]
    picture = lambda x: Image.fromarray(((x.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).numpy().astype(np.uint8))
    page = Image.new("RGB", (8 * 66 + 8, 9 * 66), "white")
    for y, (video, prompt) in enumerate(list(zip(*shown))[:9]):
        exact = test.batch([reference[prompt]])[0]
        for x, frame in enumerate([0, 5, 10, 15]):
            page.paste(picture(exact[:, frame]), (x * 66, y * 66))
            page.paste(picture(video[:, frame]), ((x + 4) * 66 + 8, y * 66))
    page.resize((page.width * 2, page.height * 2), Image.NEAREST).save(Path(args.out) / "pocket-motion" / "grid.png")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["i3d", "encode", "motion", "export", "card"])
    parser.add_argument("--data")
    parser.add_argument("--test")
    parser.add_argument("--work")
    parser.add_argument("--out")
    parser.add_argument("--pocket", default=Path(__file__).resolve().parent.parent / "datasets/pocket")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--videos", type=int)
    parser.add_argument("--run")
    parser.add_argument("--remark", default="")
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--bf16", action="store_true")
    parser.set_defaults(worker=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    {"i3d": train_i3d, "encode": encode, "motion": train_motion, "export": export, "card": card}[arguments.stage](arguments)
