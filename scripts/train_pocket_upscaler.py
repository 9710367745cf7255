#!/usr/bin/env python3
"""Trains the pocket upscaler that ships with scalebench: the Stable Diffusion x4 upscaler's layout (diffusers'
StableDiffusionUpscalePipeline) at a fraction of its width, on emoji rendered at 64 and at 256 px.

    scalebench dataset --split train --views 3 --size 64  --out SMALL
    scalebench dataset --split train --views 3 --size 256 --out LARGE
    python train_pocket_upscaler.py train  --small SMALL --large LARGE --work WORK [--minutes M]
    python train_pocket_upscaler.py export --work WORK --out datasets/pocket-upscaler
    scalebench dataset --split reference --views 16 --size 64  --png --out SMALL_PNG     # placements that it was not trained on
    scalebench dataset --split reference --views 16 --size 256 --png --out LARGE_PNG
    python train_pocket_upscaler.py card   --small SMALL_PNG --large LARGE_PNG --out datasets/pocket-upscaler

Autoencoder, text encoder and tokenizer are the pocket checkpoint's (--pocket): its autoencoder has 4 pixels a latent, as the x4
upscaler's. It is trained no further; only the unit of its latents becomes the x4 upscaler's. The U-Net sees random crops of 32x32 latents (128 px); it is convolutional but for its
smallest maps. Of every second image it is shown the small render as the autoencoder gives it back, since that is what it will
be shown of generated images. Writes a checkpoint every few minutes and resumes from it. Needs torch, diffusers and
transformers.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from train_pocket import CAPTION_DROPOUT, Ema, Images, Muon, Stage, log_rows

UNET_CONFIG = dict(
    sample_size=32, in_channels=7, out_channels=4, layers_per_block=2, block_out_channels=(32, 48, 64, 64),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    only_cross_attention=(True, True, True, False), num_class_embeds=1000, use_linear_projection=True,
    cross_attention_dim=96, attention_head_dim=4, norm_num_groups=16,
)
BETAS = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="scaled_linear")
MAX_NOISE_LEVEL = 350
SCALING_FACTOR = 0.08333
CROP = 32


class Latents:
    """Scaled latents of the large renders, made one by one in a random order while the training goes on: encoding all of them
    beforehand takes as long as a third of the training."""

    def __init__(self, args, vae):
        self.small, self.large, self.vae, self.file = Images(args.small), Images(args.large), vae, Path(args.work) / "latents.pt"
        assert self.small.names == self.large.names and self.large.size == 4 * self.small.size and self.small.views == self.large.views
        rng = np.random.default_rng(7)
        self.order = [(int(e), int(v)) for v in range(self.large.views) for e in rng.permutation(len(self.large.names))]
        self.latents, self.returned = torch.load(self.file) if self.file.exists() else ([], [])

    @torch.no_grad()
    def more(self, n=1):
        for emoji, view in self.order[len(self.latents) : len(self.latents) + n]:
            self.latents.append((self.vae.encode(self.large.batch([emoji], [view])).latent_dist.mean[0] * self.vae.config.scaling_factor).half())
            x = self.small.batch([emoji], [view])
            self.returned.append(self.vae.decode(self.vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)[0].half())

    def save(self):
        temporary = self.file.with_suffix(".tmp")
        torch.save((self.latents, self.returned), temporary)
        temporary.replace(self.file)

    def crop(self, i, given, top, left):
        """Latents, and the small image, plain or as the autoencoder gives it back."""
        cut = lambda x: x[:, top : top + CROP, left : left + CROP].float()
        emoji, view = self.order[i]
        small = self.returned[i] if given else self.small.batch([emoji], [view])[0]
        return cut(self.latents[i]), cut(small)


def train(args):
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    pocket = Path(args.pocket)
    Path(args.work).mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(pocket / "vae").float().eval()
    text = CLIPTextModel.from_pretrained(pocket / "text_encoder").float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(pocket / "tokenizer")
    data = Latents(args, vae)
    with torch.no_grad():
        embed = lambda texts: text(tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids).last_hidden_state
        names = [name[1] for name in data.small.names]
        captions_of = torch.cat([embed(names[i : i + 128]) for i in range(0, len(names), 128)])
        empty = embed([""])[0]
    data.more(64)
    side = data.small.size

    torch.manual_seed(7)
    unet = UNet2DConditionModel(**UNET_CONFIG).to(memory_format=torch.channels_last).train()
    print("parameters:", sum(p.numel() for p in unet.parameters()), flush=True)
    ema = Ema(unet, 0.9995)
    matrix = lambda name, p: p.ndim >= 2 and not any(part in name for part in ("embedding", "conv_in", "conv_out"))
    named = list(unet.named_parameters())
    muon = Muon([p for n, p in named if matrix(n, p)], args.lr)
    adam = torch.optim.AdamW([p for n, p in named if not matrix(n, p)], args.lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    schedule = DDPMScheduler(num_train_timesteps=1000, prediction_type="v_prediction", **BETAS)
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    stage = Stage("upscaler", args, dict(unet=unet, ema=ema, muon=muon, adam=adam))
    going = True
    while going:
        for group in muon.param_groups + adam.param_groups:
            group["lr"] = stage.lr(args.lr, warmup=300)
        n = args.batch
        if stage.step % 2 == 0:
            data.more()
        chosen = stage.rng.integers(len(data.latents), size=n)
        places = stage.rng.integers(side - CROP + 1, size=(n, 2))
        x, low = map(torch.stack, zip(*(data.crop(i, given, *place) for i, given, place in zip(chosen, stage.rng.integers(2, size=n), places))))
        captions = captions_of[[data.order[i][0] for i in chosen]].clone()
        captions[torch.rand(n) < CAPTION_DROPOUT] = empty
        # Half of the noise levels are small ones, which is where it will be used.
        level = torch.where(torch.rand(n) < 0.5, torch.randint(51, (n,)), torch.randint(MAX_NOISE_LEVEL + 1, (n,)))
        low = schedule.add_noise(low, torch.randn_like(low), level)
        t, noise = torch.randint(1000, (n,)), torch.randn_like(x)
        seen = torch.cat([schedule.add_noise(x, noise, t), low], 1).contiguous(memory_format=torch.channels_last)
        prediction = unet(seen, t, captions, class_labels=level, return_dict=False)[0]
        error = (prediction - schedule.get_velocity(x, noise, t)).square().mean((1, 2, 3))
        # Min-SNR weighting (Hang et al. 2023, gamma 5, velocity form).
        loss = (error * snr[t].clamp(max=5.0) / (snr[t] + 1)).mean()
        unet.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        muon.step()
        adam.step()
        ema.update(unet)
        going = stage.tick(loss, n, mse=round(error.mean().item(), 4), lr=round(adam.param_groups[0]["lr"], 6), encoded=len(data.latents))
        if stage.step % 500 == 0:
            data.save()


def rescale(folder):
    """Another unit for the autoencoder's latents: diffusers' pipeline takes the factor of the x4 upscaler's whatever the file says."""
    from safetensors.torch import load_file, save_file

    file, weights = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    config, state = json.loads(file.read_text()), {k: v.float() for k, v in load_file(weights).items()}
    unit = config["scaling_factor"] / SCALING_FACTOR
    n = config["latent_channels"]
    for name in ("quant_conv.weight", "quant_conv.bias"):
        state[name][:n] *= unit
    state["quant_conv.bias"][n:] += 2 * math.log(unit)
    state["post_quant_conv.weight"] /= unit
    save_file({k: v.half().contiguous() for k, v in state.items()}, weights, metadata={"format": "pt"})
    file.write_text(json.dumps(dict(config, scaling_factor=SCALING_FACTOR), indent=2) + "\n")


@torch.no_grad()
def export(args):
    """Writes the averaged U-Net (f16) as a diffusers folder, with the pocket checkpoint's other parts."""
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
    from safetensors.torch import save_file

    out, pocket = Path(args.out), Path(args.pocket)
    saved = torch.load(Path(args.work) / "upscaler.pt", weights_only=False)
    unet = UNet2DConditionModel(**UNET_CONFIG)
    unet.load_state_dict(saved["ema"]["model"])
    unet.save_config(out / "unet")
    save_file({k: v.half().contiguous() for k, v in unet.state_dict().items()}, out / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    for part in ["vae", "text_encoder", "tokenizer"]:
        shutil.copytree(pocket / part, out / part, dirs_exist_ok=True)
    rescale(out / "vae")
    DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction", **BETAS).save_config(out / "scheduler")
    DDPMScheduler(**BETAS).save_config(out / "low_res_scheduler")
    index = dict(_class_name="StableDiffusionUpscalePipeline", max_noise_level=MAX_NOISE_LEVEL, low_res_scheduler=["diffusers", "DDPMScheduler"],
                 scheduler=["diffusers", "DDIMScheduler"], text_encoder=["transformers", "CLIPTextModel"],
                 tokenizer=["transformers", "CLIPTokenizer"], unet=["diffusers", "UNet2DConditionModel"], vae=["diffusers", "AutoencoderKL"],
                 feature_extractor=[None, None], safety_checker=[None, None], watermarker=[None, None])
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    training = dict(steps=saved["step"], images=saved["images"], seconds=round(saved["seconds"]), last=log_rows(args.work, "upscaler")[-1],
                    versions=dict(torch=torch.__version__, device="cpu", threads=torch.get_num_threads()))
    (out / "training.json").write_text(json.dumps(training, indent=2) + "\n")
    print(json.dumps(training, indent=2))


@torch.no_grad()
def card(args):
    """Measures the exported folder on renders of other placements, and writes its README.md and grid.png."""
    from diffusers import StableDiffusionUpscalePipeline
    from PIL import Image

    out, training = Path(args.out), json.load(open(Path(args.out) / "training.json"))
    pipe = StableDiffusionUpscalePipeline.from_pretrained(out, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    small, large = ([Image.open(f).convert("RGB") for f in sorted(Path(folder).glob("*.png"))] for folder in (args.small, args.large))
    array = lambda image: np.asarray(image).astype(np.float64)
    psnr = lambda a, b: 10 * np.log10(255**2 / np.mean((array(a) - array(b)) ** 2))
    laplacian = lambda x: (4 * x[1:-1, 1:-1] - x[:-2, 1:-1] - x[2:, 1:-1] - x[1:-1, :-2] - x[1:-1, 2:]).var()
    sharp = lambda image: np.log10(laplacian(array(image.convert("L"))) + 1e-2)

    def returned(image):
        x = torch.from_numpy(array(image)).float().permute(2, 0, 1)[None] / 127.5 - 1
        y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean).sample[0].permute(1, 2, 0)
        return Image.fromarray(((y / 2 + 0.5).clamp(0, 1) * 255).round().numpy().astype(np.uint8))

    # The prompt is empty: the small image says what it is.
    enlarge = lambda i: pipe("", small[i], num_inference_steps=20, guidance_scale=1.0, noise_level=20, generator=torch.Generator().manual_seed(i)).images[0]
    rows = [("the render itself", large), ("the render through the autoencoder: the best there could be", [returned(x) for x in large]),
            ("upscaler, 20 steps", [enlarge(i) for i in range(len(small))]),
            ("Lanczos", [x.resize(y.size, Image.LANCZOS) for x, y in zip(small, large)]), ("bicubic", [x.resize(y.size, Image.BICUBIC) for x, y in zip(small, large)])]
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file() and f.suffix not in (".png", ".md")) / 1e6
    lines = [
        "# The pocket upscaler", "",
        "The Stable Diffusion x4 upscaler's layout at a fraction of its width: a U-Net of 7 input channels (latents and the noised small image) that is told",
        "the noise level, whose two finer attention levels attend to the text alone, v-prediction, an autoencoder of 4 pixels a latent. Trained from scratch by",
        f"`scripts/train_pocket_upscaler.py` on the emoji set (`datasets/README.md`), 64 to 256 px. Diffusers folder, f16, averaged weights, {size:.1f} MB;",
        "autoencoder, text encoder and tokenizer are the pocket checkpoint's, with the x4 upscaler's unit of latents. Its figures rank methods on the pocket model; they say nothing about any other.", "",
        "| steps | images | hours | last logged |", "| --- | --- | --- | --- |",
        f"| {training['steps']} | {training['images']} | {training['seconds'] / 3600:.2f} | loss {training['last']['loss']}, mse {training['last']['mse']} |", "",
        f"PyTorch {training['versions']['torch']}, CPU, one thread of a shared machine.", "",
        "![Small renders, bicubic, upscaler, exact renders](grid.png)", "", "*Rows: small render, bicubic, upscaler, exact render.*", "",
        f"## Quality, measured on {len(small)} renders of placements that it was not trained on", "",
        "| 256 px from | PSNR, dB | log₁₀ of the Laplacian's variance |", "| --- | --- | --- |",
    ]
    for name, images in rows:
        score = "–" if images is large else f"{np.mean([psnr(x, y) for x, y in zip(images, large)]):.2f}"
        lines.append(f"| {name} | {score} | {np.mean([sharp(x) for x in images]):.2f} |")
    lines += ["", "Made by `python scripts/train_pocket_upscaler.py card`.", ""]
    (out / "README.md").write_text("\n".join(lines), encoding="utf-8")
    columns, page = min(8, len(small)), Image.new("RGB", (8 * 132, 4 * 132), "white")
    strips = [[x.resize((128, 128), Image.NEAREST) for x in small], rows[4][1], rows[2][1], large]
    for y, strip in enumerate(strips):
        for x in range(columns):
            page.paste(strip[x].resize((128, 128), Image.LANCZOS), (x * 132, y * 132))
    page.save(out / "grid.png")
    print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["train", "export", "card"])
    parser.add_argument("--small")
    parser.add_argument("--large")
    parser.add_argument("--work")
    parser.add_argument("--out")
    parser.add_argument("--pocket", default=Path(__file__).resolve().parent.parent / "datasets/pocket")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.set_defaults(worker=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    {"train": train, "export": export, "card": card}[arguments.stage](arguments)
