#!/usr/bin/env python3
"""Makes the images that `scalebench jobs` lists with a diffusers pipeline, so that they can stand in scalebench's table.

    scalebench jobs EXPERIMENT.yaml --out jobs.csv
    python diffusers_jobs.py jobs.csv --method mine --checkpoint DIR_OR_HUB_NAME --out FOLDER [--with plain|hidiffusion|patch]
    scalebench sweep EXPERIMENT.yaml

Takes the rows of one method, makes each image with its own prompt, seed and size, and writes it under its name in FOLDER. What is
there already is left alone, so the same command goes on after an interruption. Seconds of an image go to FOLDER/timings.csv,
where the sweep finds them. To bring a method of your own, write a function like those under "Methods" below; the rest can stay.

Needs torch and diffusers (with transformers and safetensors), and hidiffusion for that example.
"""

import argparse
import csv
import os
import sys
import time
from pathlib import Path

import diffusers
import torch

# Methods: each changes a pipeline once, before the loop.


def plain(pipe):
    """The pipeline as it is: what scalebench calls direct-inf."""


def hidiffusion(pipe):
    """HiDiffusion (Zhang et al., ECCV 2024) by its authors' package (0.1.10)."""
    # The package looks for one of diffusers' classes where newer versions no longer have it.
    from diffusers.models.controlnets import multicontrolnet

    sys.modules["diffusers.pipelines.controlnet.multicontrolnet"] = multicontrolnet
    from hidiffusion import apply_hidiffusion

    apply_hidiffusion(pipe)


def patch(pipe):
    """A patch of one's own: convolutions of the middle block see twice as far, as in ScaleCrafter's re-dilation without its schedule."""
    for module in pipe.unet.mid_block.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            module.dilation, module.padding = (2, 2), (2, 2)


METHODS = {"plain": plain, "hidiffusion": hidiffusion, "patch": patch}

# The loop.

SCHEDULERS = {
    "ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "pndm": "PNDMScheduler", "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler", "dpm++2m": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler",
}


def make(pipe, job):
    """One image. The generator lives on the CPU whatever the device, as scalebench's noise does."""
    more = {"eta": float(job["eta"])} if job["sampler"] == "ddim" else {}
    return pipe(
        job["prompt"],
        negative_prompt=job["negative_prompt"] or None,
        width=int(job["width"]),
        height=int(job["height"]),
        num_inference_steps=int(job["steps"]),
        guidance_scale=float(job["guidance_scale"]),
        generator=torch.Generator("cpu").manual_seed(int(job["seed"])),
        **more,
    ).images[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", type=Path, help="CSV file of `scalebench jobs`")
    parser.add_argument("--method", required=True, help="the method whose rows are made")
    parser.add_argument("--checkpoint", required=True, help="a folder in diffusers layout, or a repository of the hub")
    parser.add_argument("--out", type=Path, required=True, help="folder in which the files are made")
    parser.add_argument("--with", dest="how", choices=sorted(METHODS), default="plain", help="what is done to the pipeline")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--limit", type=int, help="make no more than so many images this time")
    args = parser.parse_args()

    with args.jobs.open(newline="", encoding="utf-8") as file:
        jobs = [job for job in csv.DictReader(file) if job["method"] == args.method]
    todo = [job for job in jobs if not (args.out / job["file"]).exists()]
    if not jobs:
        parser.error(f"{args.jobs} has no row of method {args.method}")
    print(f"{len(todo)} of {len(jobs)} images to make")
    todo = todo[: args.limit]
    if not todo:
        return

    pipe = diffusers.DiffusionPipeline.from_pretrained(args.checkpoint, torch_dtype=getattr(torch, args.dtype)).to(args.device)
    scheduler = getattr(diffusers, SCHEDULERS[todo[0]["sampler"]])
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    METHODS[args.how](pipe)

    args.out.mkdir(parents=True, exist_ok=True)
    timings = args.out / "timings.csv"
    if not timings.exists():
        timings.write_text("file,seconds\n")
    for done, job in enumerate(todo, 1):
        start = time.perf_counter()
        image = make(pipe, job)
        seconds = time.perf_counter() - start
        path = args.out / job["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        # By rename: a file that has its name is whole.
        temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        image.save(temporary)
        with timings.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([job["file"], f"{seconds:.4f}"])
        temporary.replace(path)
        print(f"{done}/{len(todo)} {job['file']} {seconds:.2f} s", flush=True)


if __name__ == "__main__":
    main()
