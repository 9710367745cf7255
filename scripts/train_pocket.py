#!/usr/bin/env python3
"""Trains the pocket networks that ship with scalebench: a VAE, a text-to-image U-Net with a CLIP text
encoder, and a narrow FID Inception.

    python train_pocket.py vae        --data DATA --work WORK [--minutes M]
    python train_pocket.py unet       --data DATA --work WORK [--minutes M]
    python train_pocket.py inception  --data DATA --work WORK [--minutes M]
    python train_pocket.py export     --work WORK --out datasets/pocket

DATA is a folder made by `scalebench dataset` (images.u8, names.tsv, dataset.json). Each stage appends to
WORK/<stage>.jsonl, writes a checkpoint every few minutes and resumes from it. Needs torch, diffusers and
transformers. `--threads 1` (the default) is the fastest setting on a machine that does anything else;
further cores are used by starting `unet` again with `--worker 1`, `--worker 2`, …: workers draw images of
their own and average their weights now and then (local SGD), so that a slow one holds up no other.
"""

import argparse
import copy
import json
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

VAE_CONFIG = dict(
    in_channels=3, out_channels=3, latent_channels=4, sample_size=64, layers_per_block=1, norm_num_groups=8,
    block_out_channels=(24, 48, 64), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
)
UNET_CONFIG = dict(
    sample_size=16, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(32, 64, 96, 128),
    cross_attention_dim=96, attention_head_dim=4, norm_num_groups=16,
)
TEXT_CONFIG = dict(
    hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=24,
    hidden_act="quick_gelu", projection_dim=96,
)
CAPTION_DROPOUT = 0.1


class Images:
    """The rendered set: image `(emoji, view)` as float NCHW in [-1, 1]."""

    def __init__(self, folder):
        folder = Path(folder)
        self.names = [line.rstrip("\n").split("\t") for line in open(folder / "names.tsv", encoding="utf-8")]
        info = json.load(open(folder / "dataset.json"))
        self.size, self.views = info["size"], info["views"]
        shape = (len(self.names), self.views, self.size, self.size, 3)
        self.pixels = np.memmap(folder / "images.u8", dtype=np.uint8, mode="r", shape=shape)

    def batch(self, emoji, view):
        x = torch.from_numpy(self.pixels[emoji, view].astype(np.float32))
        return x.permute(0, 3, 1, 2).contiguous() / 127.5 - 1


class Stage:
    """Wall-clock budget, log, checkpoint and resume, shared by the three trainings."""

    def __init__(self, name, args, state):
        name += f".{args.worker}" if args.worker else ""
        self.name, self.state = name, state  # state: name -> object with state_dict
        self.work = Path(args.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.file = self.work / f"{name}.pt"
        self.budget, self.step, self.images, self.seconds = args.minutes * 60, 0, 0, 0.0
        if self.file.exists():
            saved = torch.load(self.file, weights_only=False)
            self.step, self.images, self.seconds = saved["step"], saved["images"], saved["seconds"]
            for key, item in state.items():
                item.load_state_dict(saved[key])
            print(f"resumed {name} at step {self.step}", flush=True)
        self.mark = self.saved = time.time()
        self.rng = np.random.default_rng([7, self.step, args.worker])
        torch.manual_seed(7 + self.step + 1_000_000 * args.worker)
        self.total = 0.0

    def progress(self):
        return min(1.0, (self.seconds + time.time() - self.mark) / self.budget)

    def lr(self, peak, warmup=100):
        return peak * min(1.0, (self.step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * self.progress())) + 1e-6

    def tick(self, loss, images, every=50, **more):
        self.step += 1
        self.images += images
        self.total += loss.item()
        if self.step % every == 0:
            row = dict(step=self.step, images=self.images, seconds=round(self.seconds + time.time() - self.mark), loss=round(self.total / every, 5), **more)
            self.total = 0.0
            with open(self.work / f"{self.name}.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)
        done = self.progress() >= 1
        if done or time.time() - self.saved > 180:
            self.save()
        return not done

    def save(self):
        now = time.time()
        self.seconds, self.mark, self.saved = self.seconds + now - self.mark, now, now
        blob = dict(step=self.step, images=self.images, seconds=self.seconds, **{k: v.state_dict() for k, v in self.state.items()})
        temporary = self.file.with_suffix(".tmp")
        torch.save(blob, temporary)
        os.replace(temporary, self.file)


class Ema:
    """Exponential moving average of weights, with the usual warm-up of the decay."""

    def __init__(self, model, decay):
        self.model, self.decay, self.n = copy.deepcopy(model).eval(), decay, 0

    def update(self, model):
        self.n += 1
        d = min(self.decay, (1 + self.n) / (10 + self.n))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - d)

    def state_dict(self):
        return dict(model=self.model.state_dict(), n=self.n)

    def load_state_dict(self, saved):
        self.model.load_state_dict(saved["model"])
        self.n = saved["n"]


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): momentum whose singular values are set to about 1 by five Newton-Schulz steps, scaled to
    AdamW's usual update size (Liu et al. 2025). Convolution kernels are matrices of one row per output channel."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, dict(lr=lr))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 0.05)
                x = p.grad.lerp(state["momentum"], 0.95).reshape(p.shape[0], -1)
                size = 0.2 * math.sqrt(max(x.shape))
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    a = x @ x.T
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                p.mul_(1 - group["lr"] * 1e-2)
                p.add_((x.T if tall else x).reshape(p.shape), alpha=-group["lr"] * size)


class Average:
    """Every `every` steps: publishes this worker's weights and takes the mean with every other worker's latest. A worker
    that was away (started late, or paused) begins with the others' weights instead of pulling them back to its own."""

    def __init__(self, args, parameters, every=60, away=30):
        self.folder, self.worker, self.parameters = Path(args.work) / "average", args.worker, list(parameters)
        self.every, self.away, self.seen, self.last = every, away, {}, None

    def news(self):
        mine, news = self.folder / f"{self.worker}.pt", []
        for file in sorted(self.folder.glob("*.pt")):
            written = file.stat().st_mtime
            if file != mine and self.seen.get(file) != written:
                self.seen[file] = written
                news.append(torch.load(file))
        return news

    @torch.no_grad()
    def step(self, n):
        now, last = time.time(), self.last
        self.last = now
        # Worker 0 is the one that is exported; it never follows.
        if self.worker and (last is None or now - last > self.away):
            for p, *theirs in zip(self.parameters, *self.news()):
                if theirs:
                    p.copy_(torch.stack(theirs).mean(0))
        elif n % self.every == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f"{self.worker}.tmp"
            torch.save([p.data for p in self.parameters], temporary)
            os.replace(temporary, self.folder / f"{self.worker}.pt")
            for p, *theirs in zip(self.parameters, *self.news()):
                if theirs:
                    p.copy_(torch.stack([p.data, *theirs]).mean(0))


def train_vae(args):
    from diffusers import AutoencoderKL

    data = Images(args.data)
    model = AutoencoderKL(**VAE_CONFIG).to(memory_format=torch.channels_last)
    ema = Ema(model, 0.999)
    opt = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    stage = Stage("vae", args, dict(model=model, ema=ema, opt=opt))
    going = True
    while going:
        for group in opt.param_groups:
            group["lr"] = stage.lr(2e-3)
        x = data.batch(stage.rng.integers(len(data.names), size=16), stage.rng.integers(data.views, size=16))
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = model.encode(x).latent_dist
        y = model.decode(posterior.sample()).sample
        # L1 keeps flat colours flat, the squared error pulls outliers, image gradients keep edges sharp.
        edges = sum((torch.diff(y, dim=d) - torch.diff(x, dim=d)).abs().mean() for d in (2, 3))
        rec = (y - x).abs().mean() + (y - x).square().mean() + edges
        loss = rec + 5e-4 * posterior.kl().mean() / posterior.mean[0].numel()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        ema.update(model)
        mse = (y - x).square().mean().item()
        going = stage.tick(loss, len(x), psnr=round(10 * math.log10(4 / mse), 2), latent_std=round(posterior.mean.std().item(), 3))


def load_vae(args):
    """The averaged VAE in eval mode: of this WORK, or of the checkpoint that the training starts from."""
    from diffusers import AutoencoderKL

    if args.init_from and not (Path(args.work) / "vae.pt").exists():
        return AutoencoderKL.from_pretrained(Path(args.init_from) / "vae").float().eval()
    saved = torch.load(Path(args.work) / "vae.pt", weights_only=False)
    model = AutoencoderKL(**VAE_CONFIG)
    model.load_state_dict(saved["ema"]["model"])
    return model.eval()


@torch.no_grad()
def encode_all(args, data, vae):
    """Latents of every training image, scaled to unit variance; cached in WORK."""
    cache = Path(args.work) / "latents.pt"
    if cache.exists():
        return torch.load(cache, weights_only=False)
    flat = data.pixels.reshape(-1, data.size, data.size, 3)
    means = []
    for start in range(0, len(flat), 128):
        x = torch.from_numpy(flat[start : start + 128].astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
        means.append(vae.encode(x).latent_dist.mean)
    latents = torch.cat(means)
    # A VAE that comes with a checkpoint keeps its factor, or the U-Net would see other latents.
    default = 0.18215
    scale = 1.0 / latents.std().item() if vae.config.scaling_factor == default else vae.config.scaling_factor
    blob = dict(latents=(latents * scale).view(len(data.names), data.views, *latents.shape[1:]), scaling_factor=scale)
    torch.save(blob, cache)
    return blob


def train_tokenizer(args, names):
    """A CLIP tokenizer (byte-level BPE, `</w>` word ends) whose merges are learnt from the captions."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    folder = Path(args.work) / "tokenizer"
    if args.init_from and not folder.exists():
        shutil.copytree(Path(args.init_from) / "tokenizer", folder)
    if not (folder / "vocab.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
        bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
        pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
        bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=1600, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
        texts = [n[1] for n in names] + sorted({n[2] for n in names})
        bpe.train_from_iterator(texts, trainer)
        merges = [m if isinstance(m, list) else m.split(" ") for m in json.loads(bpe.to_str())["model"]["merges"]]
        # CLIP's layout: bytes, bytes with the end-of-word mark, merges in order, then the two specials.
        tokens = alphabet + [a + "</w>" for a in alphabet]
        seen = set(tokens)
        for left, right in merges:
            if left + right not in seen:
                seen.add(left + right)
                tokens.append(left + right)
        tokens += ["<|startoftext|>", "<|endoftext|>"]
        json.dump({t: i for i, t in enumerate(tokens)}, open(folder / "vocab.json", "w", encoding="utf-8"), ensure_ascii=False)
        with open(folder / "merges.txt", "w", encoding="utf-8") as f:
            f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        special = dict(content=None, lstrip=False, normalized=True, rstrip=False, single_word=False)
        bos, eos = dict(special, content="<|startoftext|>"), dict(special, content="<|endoftext|>")
        json.dump(dict(bos_token=bos, eos_token=eos, pad_token="<|endoftext|>", unk_token=eos), open(folder / "special_tokens_map.json", "w"), indent=2)
        config = dict(add_prefix_space=False, bos_token=dict(bos, __type="AddedToken"), do_lower_case=True, eos_token=dict(eos, __type="AddedToken"),
                      errors="replace", model_max_length=TEXT_CONFIG["max_position_embeddings"], pad_token="<|endoftext|>",
                      tokenizer_class="CLIPTokenizer", unk_token=dict(eos, __type="AddedToken"))
        json.dump(config, open(folder / "tokenizer_config.json", "w"), indent=2)
    return CLIPTokenizer.from_pretrained(str(folder))


def text_encoder(tokenizer):
    from transformers import CLIPTextConfig, CLIPTextModel

    n = len(tokenizer)
    return CLIPTextModel(CLIPTextConfig(vocab_size=n, bos_token_id=n - 2, eos_token_id=n - 1, pad_token_id=n - 1, **TEXT_CONFIG))


def train_unet(args):
    from diffusers import DDPMScheduler, UNet2DConditionModel

    data = Images(args.data)
    tokenizer = train_tokenizer(args, data.names)
    latents = encode_all(args, data, load_vae(args))["latents"]
    encode = lambda texts: tokenizer(texts, padding="max_length", max_length=TEXT_CONFIG["max_position_embeddings"], truncation=True, return_tensors="pt").input_ids
    captions, empty = encode([n[1] for n in data.names]), encode([""])[0]
    print("longest caption:", int((captions != captions[0, -1]).sum(1).max()), "tokens; latents", tuple(latents.shape), flush=True)

    unet = UNet2DConditionModel(**UNET_CONFIG).to(memory_format=torch.channels_last)
    text = text_encoder(tokenizer)
    both = torch.nn.ModuleDict(dict(unet=unet, text=text)).train()
    ema = Ema(both, 0.9995)
    matrix = lambda name, p: p.ndim >= 2 and not any(part in name for part in ("embedding", "conv_in", "conv_out"))
    named = list(both.named_parameters())
    muon = Muon([p for n, p in named if matrix(n, p)], 1e-3)
    adam = torch.optim.AdamW([p for n, p in named if not matrix(n, p)], 1e-3, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    average = Average(args, both.parameters())
    noise_schedule = DDPMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    snr = noise_schedule.alphas_cumprod / (1 - noise_schedule.alphas_cumprod)
    if args.init_from and not (Path(args.work) / "unet.pt").exists():
        from safetensors.torch import load_file

        folder = Path(args.init_from)
        text_state = {k.removeprefix("text_model."): v for k, v in load_file(folder / "text_encoder" / "model.safetensors").items()}
        own = {k.removeprefix("text_model."): k for k in text.state_dict()}
        text.load_state_dict({own[k]: v.float() for k, v in text_state.items()})
        unet.load_state_dict({k: v.float() for k, v in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").items()})
        ema = Ema(both, 0.9995)
        print("weights from", folder, flush=True)
    stage = Stage("unet", args, dict(both=both, ema=ema, muon=muon, adam=adam))
    going = True
    while going:
        for group in muon.param_groups + adam.param_groups:
            group["lr"] = stage.lr(args.lr, warmup=300)
        n = args.batch
        emoji = stage.rng.integers(len(data.names), size=n)
        x = latents[torch.from_numpy(emoji), torch.from_numpy(stage.rng.integers(data.views, size=n))]
        ids = captions[torch.from_numpy(emoji)].clone()
        ids[torch.rand(n) < CAPTION_DROPOUT] = empty
        t = torch.randint(1000, (n,))
        noise = torch.randn_like(x)
        noisy = noise_schedule.add_noise(x, noise, t).contiguous(memory_format=torch.channels_last)
        prediction = unet(noisy, t, text(ids).last_hidden_state, return_dict=False)[0]
        error = (prediction - noise).square().mean((1, 2, 3))
        # Min-SNR weighting (Hang et al. 2023, gamma 5, epsilon form): the easy low-noise steps do not drown the others.
        loss = (error * snr[t].clamp(max=5.0) / snr[t]).mean()
        both.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        muon.step()
        adam.step()
        average.step(stage.step)
        ema.update(both)
        going = stage.tick(loss, n, mse=round(error.mean().item(), 4), lr=round(adam.param_groups[0]["lr"], 6))


class Inception(torch.nn.Module):
    """The FID Inception-v3 graph (TF, 2015-12-05) with every channel count times `width`; modules are named as in
    torch-fidelity's state dict."""

    def __init__(self, width, num_classes, num_groups):
        super().__init__()
        c = lambda n: max(1, round(n * width))

        def conv(name, i, o, kernel, stride=1, padding=0):
            block = torch.nn.Module()
            block.conv = torch.nn.Conv2d(i, o, kernel, stride, padding, bias=False)
            block.bn = torch.nn.BatchNorm2d(o, eps=0.001)
            parent = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(parent, part):
                    setattr(parent, part, torch.nn.Module())
                parent = getattr(parent, part)
            setattr(parent, last, block)

        conv("Conv2d_1a_3x3", 3, c(32), 3, 2)
        conv("Conv2d_2a_3x3", c(32), c(32), 3)
        conv("Conv2d_2b_3x3", c(32), c(64), 3, 1, 1)
        conv("Conv2d_3b_1x1", c(64), c(80), 1)
        conv("Conv2d_4a_3x3", c(80), c(192), 3)
        for name, i, pool in [("Mixed_5b", c(192), 32), ("Mixed_5c", c(64) + c(64) + c(96) + c(32), 64), ("Mixed_5d", 2 * c(64) + c(96) + c(64), 64)]:
            conv(f"{name}.branch1x1", i, c(64), 1)
            conv(f"{name}.branch5x5_1", i, c(48), 1)
            conv(f"{name}.branch5x5_2", c(48), c(64), 5, 1, 2)
            conv(f"{name}.branch3x3dbl_1", i, c(64), 1)
            conv(f"{name}.branch3x3dbl_2", c(64), c(96), 3, 1, 1)
            conv(f"{name}.branch3x3dbl_3", c(96), c(96), 3, 1, 1)
            conv(f"{name}.branch_pool", i, c(pool), 1)
        i = 3 * c(64) + c(96)
        conv("Mixed_6a.branch3x3", i, c(384), 3, 2)
        conv("Mixed_6a.branch3x3dbl_1", i, c(64), 1)
        conv("Mixed_6a.branch3x3dbl_2", c(64), c(96), 3, 1, 1)
        conv("Mixed_6a.branch3x3dbl_3", c(96), c(96), 3, 2)
        i = i + c(384) + c(96)
        for name, c7 in [("Mixed_6b", c(128)), ("Mixed_6c", c(160)), ("Mixed_6d", c(160)), ("Mixed_6e", c(192))]:
            conv(f"{name}.branch1x1", i, c(192), 1)
            conv(f"{name}.branch7x7_1", i, c7, 1)
            conv(f"{name}.branch7x7_2", c7, c7, (1, 7), 1, (0, 3))
            conv(f"{name}.branch7x7_3", c7, c(192), (7, 1), 1, (3, 0))
            conv(f"{name}.branch7x7dbl_1", i, c7, 1)
            conv(f"{name}.branch7x7dbl_2", c7, c7, (7, 1), 1, (3, 0))
            conv(f"{name}.branch7x7dbl_3", c7, c7, (1, 7), 1, (0, 3))
            conv(f"{name}.branch7x7dbl_4", c7, c7, (7, 1), 1, (3, 0))
            conv(f"{name}.branch7x7dbl_5", c7, c(192), (1, 7), 1, (0, 3))
            conv(f"{name}.branch_pool", i, c(192), 1)
            i = 4 * c(192)
        conv("Mixed_7a.branch3x3_1", i, c(192), 1)
        conv("Mixed_7a.branch3x3_2", c(192), c(320), 3, 2)
        conv("Mixed_7a.branch7x7x3_1", i, c(192), 1)
        conv("Mixed_7a.branch7x7x3_2", c(192), c(192), (1, 7), 1, (0, 3))
        conv("Mixed_7a.branch7x7x3_3", c(192), c(192), (7, 1), 1, (3, 0))
        conv("Mixed_7a.branch7x7x3_4", c(192), c(192), 3, 2)
        i = i + c(320) + c(192)
        for name in ["Mixed_7b", "Mixed_7c"]:
            conv(f"{name}.branch1x1", i, c(320), 1)
            conv(f"{name}.branch3x3_1", i, c(384), 1)
            conv(f"{name}.branch3x3_2a", c(384), c(384), (1, 3), 1, (0, 1))
            conv(f"{name}.branch3x3_2b", c(384), c(384), (3, 1), 1, (1, 0))
            conv(f"{name}.branch3x3dbl_1", i, c(448), 1)
            conv(f"{name}.branch3x3dbl_2", c(448), c(384), 3, 1, 1)
            conv(f"{name}.branch3x3dbl_3a", c(384), c(384), (1, 3), 1, (0, 1))
            conv(f"{name}.branch3x3dbl_3b", c(384), c(384), (3, 1), 1, (1, 0))
            conv(f"{name}.branch_pool", i, c(192), 1)
            i = c(320) + 4 * c(384) + c(192)
        self.fc = torch.nn.Linear(i, num_classes)
        self.fc_groups = torch.nn.Linear(i, num_groups)

    def run(self, x, block, *names):
        for name in names:
            layer = getattr(block, name)
            x = F.relu(layer.bn(layer.conv(x)))
        return x

    def forward(self, x):
        """Images (N, 3, H, W) in [-1, 1) -> features (N, 2048 * width)."""
        run = self.run
        average = lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        x = run(x, self, "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3")
        x = run(F.max_pool2d(x, 3, 2), self, "Conv2d_3b_1x1", "Conv2d_4a_3x3")
        x = F.max_pool2d(x, 3, 2)
        for b in (self.Mixed_5b, self.Mixed_5c, self.Mixed_5d):
            x = torch.cat([run(x, b, "branch1x1"), run(x, b, "branch5x5_1", "branch5x5_2"),
                           run(x, b, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), run(average(x), b, "branch_pool")], 1)
        b = self.Mixed_6a
        x = torch.cat([run(x, b, "branch3x3"), run(x, b, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), F.max_pool2d(x, 3, 2)], 1)
        for b in (self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e):
            x = torch.cat([run(x, b, "branch1x1"), run(x, b, *[f"branch7x7_{k}" for k in (1, 2, 3)]),
                           run(x, b, *[f"branch7x7dbl_{k}" for k in (1, 2, 3, 4, 5)]), run(average(x), b, "branch_pool")], 1)
        b = self.Mixed_7a
        x = torch.cat([run(x, b, "branch3x3_1", "branch3x3_2"), run(x, b, *[f"branch7x7x3_{k}" for k in (1, 2, 3, 4)]), F.max_pool2d(x, 3, 2)], 1)
        for b, pool in ((self.Mixed_7b, average), (self.Mixed_7c, lambda x: F.max_pool2d(x, 3, 1, 1))):
            y, z = run(x, b, "branch3x3_1"), run(x, b, "branch3x3dbl_1", "branch3x3dbl_2")
            x = torch.cat([run(x, b, "branch1x1"), run(y, b, "branch3x3_2a"), run(y, b, "branch3x3_2b"),
                           run(z, b, "branch3x3dbl_3a"), run(z, b, "branch3x3dbl_3b"), run(pool(x), b, "branch_pool")], 1)
        return x.mean((2, 3))


INCEPTION_WIDTH = 0.125


def train_inception(args):
    """Tells emoji and their groups apart under shifts, zooms, rotations, tints and loss of resolution."""
    data = Images(args.data)
    group_names = sorted({n[2] for n in data.names})
    groups = torch.tensor([group_names.index(n[2]) for n in data.names])
    model = Inception(INCEPTION_WIDTH, len(data.names), len(group_names)).to(memory_format=torch.channels_last)
    opt = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-2, fused=True)
    stage = Stage("inception", args, dict(model=model, opt=opt))
    going, n = True, 64
    while going:
        for group in opt.param_groups:
            group["lr"] = stage.lr(4e-3)
        emoji = stage.rng.integers(len(data.names), size=n)
        x = data.batch(emoji, stage.rng.integers(data.views, size=n)) - 1  # white is 0, like the padding below
        # Mostly half size, which costs a quarter; the end of the run is at the size that FID uses.
        size = 299 if stage.progress() > 0.8 else 155
        zoom, angle = 0.6 + 1.0 * torch.rand(n), (torch.rand(n) - 0.5) * 0.6
        theta = torch.stack([torch.stack([zoom * angle.cos(), -zoom * angle.sin(), 0.5 * (torch.rand(n) - 0.5)], 1),
                             torch.stack([zoom * angle.sin(), zoom * angle.cos(), 0.5 * (torch.rand(n) - 0.5)], 1)], 1)
        x = F.grid_sample(x, F.affine_grid(theta, (n, 3, size, size), align_corners=False), align_corners=False) + 1
        if stage.rng.random() < 0.5:
            small = int(stage.rng.integers(48, 160))
            x = F.interpolate(F.interpolate(x, (small, small), mode="bilinear", antialias=True), (size, size), mode="bilinear")
        x = x * (1 + 0.2 * (torch.rand(n, 3, 1, 1) - 0.5)) + 0.2 * (torch.rand(n, 1, 1, 1) - 0.5) + 0.02 * torch.randn(n, 1, 1, 1) * torch.randn_like(x)
        features = model(x.contiguous(memory_format=torch.channels_last))
        labels = torch.from_numpy(emoji)
        logits = model.fc(features)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.05) + 0.5 * F.cross_entropy(model.fc_groups(features), groups[labels])
        opt.zero_grad()
        loss.backward()
        opt.step()
        going = stage.tick(loss, n, accuracy=round((logits.argmax(1) == labels).float().mean().item(), 3), size=size)


def log_rows(work, stage):
    return [json.loads(line) for line in open(Path(work) / f"{stage}.jsonl")]


@torch.no_grad()
def export(args):
    """Writes the averaged weights (f16) as a diffusers folder, and the pocket Inception beside it."""
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from safetensors.torch import save_file

    work, out = Path(args.work), Path(args.out)
    half = lambda state: {k: v.half().contiguous() for k, v in state.items() if v.is_floating_point()}
    tokenizer = train_tokenizer(args, None)
    latents = torch.load(work / "latents.pt", weights_only=False)

    vae = load_vae(args)
    vae.register_to_config(scaling_factor=latents["scaling_factor"])
    saved = torch.load(work / "unet.pt", weights_only=False)
    both = torch.nn.ModuleDict(dict(unet=UNet2DConditionModel(**UNET_CONFIG), text=text_encoder(tokenizer)))
    both.load_state_dict(saved["ema"]["model"])
    for name, model in [("vae", vae), ("unet", both["unet"])]:
        model.save_config(out / name)
        file = out / name / "config.json"
        config = {k: v for k, v in json.load(open(file)).items() if k != "_name_or_path"}  # where it was loaded from
        file.write_text(json.dumps(config, indent=2) + "\n")
        save_file(half(model.state_dict()), out / name / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    text = both["text"]
    (out / "text_encoder").mkdir(parents=True, exist_ok=True)
    # transformers 4 and every published checkpoint have the `text_model.` level; transformers 5 dropped it.
    state = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in half(text.state_dict()).items()}
    save_file(state, out / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    n = len(tokenizer)
    config = dict(architectures=["CLIPTextModel"], model_type="clip_text_model", vocab_size=n, bos_token_id=n - 2, eos_token_id=n - 1, pad_token_id=n - 1, layer_norm_eps=1e-5, **TEXT_CONFIG)
    json.dump(config, open(out / "text_encoder" / "config.json", "w"), indent=2)
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1).save_config(out / "scheduler")
    (out / "tokenizer").mkdir(exist_ok=True)
    for file in ["vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"]:
        (out / "tokenizer" / file).write_bytes((work / "tokenizer" / file).read_bytes())
    index = dict(_class_name="StableDiffusionPipeline", scheduler=["diffusers", "DDIMScheduler"], text_encoder=["transformers", "CLIPTextModel"],
                 tokenizer=["transformers", "CLIPTokenizer"], unet=["diffusers", "UNet2DConditionModel"], vae=["diffusers", "AutoencoderKL"],
                 feature_extractor=[None, None], safety_checker=[None, None], requires_safety_checker=False)
    json.dump(index, open(out / "model_index.json", "w"), indent=2)

    if (work / "inception.pt").exists():
        inception_out = out.parent / "pocket-inception"
        inception_out.mkdir(parents=True, exist_ok=True)
        state = torch.load(work / "inception.pt", weights_only=False)["model"]
        state = {k: v.float().contiguous() for k, v in state.items() if v.is_floating_point()}
        classes, groups = state["fc.weight"].shape[0], state["fc_groups.weight"].shape[0]
        save_file(state, inception_out / "model.safetensors")
        json.dump(dict(width=INCEPTION_WIDTH, num_classes=classes, num_groups=groups), open(inception_out / "config.json", "w"), indent=2)

    # What was not trained here keeps its record, and what was continued adds to it.
    before = json.load(open(Path(args.init_from) / "training.json")) if args.init_from else {}
    training = {}
    for stage in ["vae", "unet", "inception"]:
        blobs = [torch.load(file, weights_only=False) for file in sorted(work.glob(f"{stage}.pt")) + sorted(work.glob(f"{stage}.[0-9]*.pt"))]
        if not blobs:
            training[stage] = before[stage]
            continue
        total = lambda key: sum(round(blob[key]) for blob in blobs)
        record = dict(steps=total("step"), images=total("images"), seconds=total("seconds"))
        if stage == "unet" and stage in before:
            record = {key: value + before[stage][key] for key, value in record.items()}
        training[stage] = dict(record, last=log_rows(work, stage)[-1])
    training["versions"] = dict(torch=torch.__version__, device="cpu", threads=torch.get_num_threads())
    json.dump(training, open(out / "training.json", "w"), indent=2)
    print(json.dumps(training, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["vae", "unet", "inception", "export"])
    parser.add_argument("--data")
    parser.add_argument("--work", required=True)
    parser.add_argument("--out")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", type=int, default=0, help="number of this process among several that train one U-Net")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--init-from", help="a checkpoint folder to start the U-Net and text encoder from (export: that it was started from)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    {"vae": train_vae, "unet": train_unet, "inception": train_inception, "export": export}[arguments.stage](arguments)
