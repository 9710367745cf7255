#!/usr/bin/env python3
"""Compares scalebench's features and metrics with torch-fidelity, pytorch-fid and clean-fid on folders of real images.

    python scripts/parity_metrics.py [--weights FILE] [--images 32] [--sizes 64,200,512,1024] [--metrics fid,kid,...]
                                     [--threads 1] [--work DIR] [--scalebench PATH]

Needs `pip install torch torchvision torch-fidelity pytorch-fid clean-fid pillow safetensors "scipy<1.18"` (tried with
torch-fidelity 0.4.0, pytorch-fid 0.3.0, clean-fid 0.1.35) and a built scalebench. No network: images are emoji that scalebench
renders, and the tools' own downloads of weights are replaced by one file, a legacy torch file that scalebench reads as well.

--weights   pt_inception-2015-12-05-6726825d.pth. Default: weights made by a hash, for which every tool must agree just as well.
--images    in each folder; KID's subsets have half as many.
--work      keeps images, weights and features there; default: a temporary folder.

Prints Markdown: features file by file as the largest difference over the root mean square of the tool's, then metrics between
pairs of folders. What only the decoder of JPEG files does has a table of its own: tools see what Pillow's libjpeg-turbo makes
of them, so the same files decoded by Pillow are compared too. What scalebench does otherwise on purpose is printed last and
fails nothing. Exit status 1 if a difference is above the tolerance in its row.

Stand-ins: clean-fid's network is a TorchScript file that it downloads; its own PyTorch port of the same network is run on the
images that its loader resizes. torch-fidelity's precision and recall come from its functions, but on Inception's features
instead of VGG-16's, whose weights are another download.
"""

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import cleanfid.fid
import cleanfid.inception_pytorch
import numpy as np
import pytorch_fid.fid_score
import pytorch_fid.inception
import torch
import torch_fidelity
from PIL import Image, __version__ as pillow_version
from safetensors.numpy import load_file
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id, glob_samples_paths

METRICS = "fid,fid_npz,kid,kid_subsets,is,precision,recall"
SUBSETS = 20
# Largest difference of a feature over the root mean square, where both sides decode to the same pixels ...
FEATURES = 2e-5
# ... and where two JPEG decoders round, and upsample chroma, in their own ways.
JPEG = 2e-2
# Metrics, relative. With fewer images than features the tools' FID is off by some 1e-4 from square roots of singular matrices,
# whence "fid (exact)": the same features of the tool without such a root. KID is a small difference of means of a kernel, and
# the tools take them in single precision, so its difference is relative to the kernel's mean.
TOLERANCE = {"fid": 1e-4, "fid_npz": 1e-4, "fid (exact)": 1e-5, "kid": 2e-6, "kid_subsets": 2e-6, "kid_subsets (std)": 2e-6,
             "is": 1e-6, "precision": 1e-6, "recall": 1e-6}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--sizes", default="64,200,512,1024")
    parser.add_argument("--metrics", default=METRICS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--scalebench", default=str(Path(__file__).parent.parent / "target" / "release" / "scalebench"))
    args = parser.parse_args()
    args.sizes = [int(size) for size in args.sizes.split(",")]
    args.metrics = args.metrics.split(",")
    if unknown := set(args.metrics) - set(METRICS.split(",")):
        parser.error(f"unknown metrics {sorted(unknown)}, expected some of {METRICS}")
    if args.images < 10:
        parser.error("expected --images of 10 or more: IS has 10 splits")
    return args


# Weights ------------------------------------------------------------------------------------------------------------


def fnv1a64(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


def hash_tensor(name, shape):
    """Uniform values that depend on the tensor's name and the element's row-major index only; f64 cast to f32.

    The rule is that of crates/metrics/tests/data/README.md.
    """
    z = np.uint64(fnv1a64("fid-a:" + name)) + np.arange(1, np.prod(shape, dtype=np.uint64) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    s = 2 * ((z >> np.uint64(40)) * 2.0**-24) - 1
    if name.endswith("conv.weight"):
        value = s * np.sqrt(6 / np.prod(shape[1:]))
    elif name.endswith("bn.weight"):
        value = 1 + 0.25 * s
    elif name.endswith("running_var"):
        value = 1 + 0.4 * s
    elif name == "fc.weight":
        value = s * np.sqrt(3 / 2048)
    else:
        value = 0.1 * s
    return torch.from_numpy(value.astype(np.float32).reshape(shape))


def write_hash_weights(path):
    """A file like the published one: legacy container, counters of batches, kernels strided as TensorFlow stored them."""
    network = pytorch_fid.inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    state = {}
    # The FID network differs from torchvision's in its pools, not in its tensors.
    for name, tensor in sorted(network.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.int64)
            continue
        value = hash_tensor(name, tuple(tensor.shape))
        if value.dim() == 4:
            value = value.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
        elif name == "fc.weight":
            value = value.T.contiguous().T
        state[name] = value
    torch.save(state, path, _use_new_zipfile_serialization=False)


# Images -------------------------------------------------------------------------------------------------------------


def write_png16(path, pixels):
    """16-bit PNG of a (height, width, 1 to 4) array; Pillow writes grey ones only."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


JPEG_KINDS = {
    "q75-420": dict(quality=75, subsampling=2), "q90-422": dict(quality=90, subsampling=1), "q95-444": dict(quality=95, subsampling=0),
    "q75-420-progressive": dict(quality=75, subsampling=2, progressive=True), "q85-grey": dict(quality=85),
}


def make_folders(args, root):
    """Name → folder. `jpeg` are files of odd sizes, `jpeg-as-png` the same pixels as Pillow decodes them."""
    folders = {}

    def folder(name):
        folders[name] = root / name
        folders[name].mkdir(parents=True, exist_ok=True)
        return folders[name]

    def render(name, split, size):
        command = [args.scalebench, "dataset", "--split", split, "--views", args.images, "--size", size, "--png", "--out", folder(name)]
        subprocess.run([str(c) for c in command], check=True, stdout=sys.stderr)
        return [Image.open(path).convert("RGB") for path in sorted(folders[name].glob("*.png"))]

    sizes = args.sizes
    images = {size: render(f"png-{size}", "reference", size) for size in sizes}
    render(f"other-{sizes[0]}", "train", sizes[0])

    # Every size and both formats, one in three cut to another shape.
    out = folder("mixed")
    for i in range(args.images):
        image = images[sizes[i % len(sizes)]][i]
        image = image.crop((0, image.height // 4, image.width, image.height - 3)) if i % 3 == 0 else image
        image.save(out / f"{i:03}.png") if i % 2 == 0 else image.save(out / f"{i:03}.jpg", quality=92)

    source = images[sorted(sizes)[len(sizes) // 2]]
    out, decoded = folder("jpeg"), folder("jpeg-as-png")
    for i, (kind, options) in enumerate(JPEG_KINDS.items()):
        image = source[i].crop((0, 0, source[i].width - 11, source[i].height - 1))
        image = image.convert("L") if "grey" in kind else image
        image.save(out / f"{kind}.jpg", **options)
        Image.open(out / f"{kind}.jpg").convert("RGB").save(decoded / f"{kind}.png")

    out, image = folder("modes"), source[0]
    alpha = Image.fromarray((np.indices((image.height, image.width)).sum(0) * 3 % 256).astype(np.uint8))
    image.convert("L").save(out / "grey.png")
    image.convert("1").save(out / "black-and-white.png")
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(out / "palette.png")
    Image.merge("RGBA", [*image.split(), alpha]).save(out / "alpha.png")
    Image.merge("LA", [image.convert("L"), alpha]).save(out / "grey-alpha.png")
    # Low bytes that would carry if they were rounded.
    wide = np.asarray(image).astype(np.uint16) * 256 + (np.arange(image.width)[None, :, None] * 37 % 256).astype(np.uint16)
    write_png16(out / "colour-16-bit.png", wide)
    write_png16(out / "colour-alpha-16-bit.png", np.concatenate([wide, wide[..., :1]], axis=-1))
    write_png16(out / "grey-alpha-16-bit.png", wide[..., :2])
    write_png16(folder("grey-16-bit") / "grey-16-bit.png", wide[..., :1])
    return folders


# The tools ----------------------------------------------------------------------------------------------------------


class Tools:
    """Each tool's way from a folder to features: `NAME(folder)` gives file names and (n, dim) arrays by tap."""

    def __init__(self, weights):
        def load(_url, progress=True):
            return torch.load(weights, weights_only=True)

        pytorch_fid.fid_score.tqdm = lambda batches: batches
        pytorch_fid.inception.load_state_dict_from_url = load
        cleanfid.inception_pytorch.load_state_dict_from_url = load
        self.fidelity = create_feature_extractor(
            "inception-v3-compat", ["2048", "logits_unbiased"], cuda=False, feature_extractor_weights_path=str(weights), verbose=False)
        self.pytorch = pytorch_fid.inception.InceptionV3([3]).eval()
        network = cleanfid.inception_pytorch.InceptionV3
        plain = network([3], resize_input=False, normalize_input=False).eval()
        legacy = network([3], resize_input=False).eval()
        # The scaling of cleanfid.inception_torchscript.InceptionV3W, and of cleanfid.features for its port.
        self.clean_networks = {
            "clean": lambda x: plain((x - 128) / 128)[0].squeeze(-1).squeeze(-1),
            "legacy_pytorch": lambda x: legacy(x / 255)[0].squeeze(-1).squeeze(-1),
        }

    @staticmethod
    def batch(folder):
        """Two of the tools stack the images of a batch, which have to be of one size."""
        return 8 if len({Image.open(path).size for path in folder.iterdir()}) == 1 else 1

    def torch_fidelity(self, folder):
        names = [Path(path).name for path in glob_samples_paths(str(folder), False, "png,jpg,jpeg", verbose=False)]
        found = extract_featuresdict_from_input_id(
            1, self.fidelity, input1=str(folder), batch_size=self.batch(folder), cuda=False, save_cpu_ram=True, verbose=False)
        return names, {tap: features.numpy() for tap, features in found.items()}

    def pytorch_fid(self, folder):
        files = sorted(file for ext in pytorch_fid.fid_score.IMAGE_EXTENSIONS for file in folder.glob(f"*.{ext}"))
        found = pytorch_fid.fid_score.get_activations(files, self.pytorch, min(self.batch(folder), len(files)), 2048, "cpu", 0)
        return [file.name for file in files], {"2048": found}

    def clean_fid(self, folder, mode="clean"):
        found = cleanfid.fid.get_folder_features(
            str(folder), self.clean_networks[mode], num_workers=0, batch_size=8, device=torch.device("cpu"), mode=mode, verbose=False)
        return sorted(path.name for path in folder.iterdir()), {"2048": found}

    def clean_fid_legacy(self, folder):
        return self.clean_fid(folder, "legacy_pytorch")


# Tool, its function, the profile that imitates it.
PROFILES = [
    ("torch-fidelity", Tools.torch_fidelity, "torch-fidelity"),
    ("pytorch-fid", Tools.pytorch_fid, "pytorch-fid"),
    ("clean-fid", Tools.clean_fid, "clean"),
    ("clean-fid legacy_pytorch", Tools.clean_fid_legacy, "pytorch-fid"),
]


def exact_fid(x, y):
    """Without the square root of a singular matrix: the trace term is a nuclear norm of centred features."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = x - x.mean(0), y - y.mean(0)
    n, m = len(x) - 1, len(y) - 1
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum() / np.sqrt(n * m)
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(a**2) / n + np.sum(b**2) / m - 2 * cross


def mean_kernel(x, y):
    return ((x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3).mean()


def tool_metrics(tool, wanted, real, fake, subset_size):
    """Metric → value by the tool's own functions of its own features, (n, dim) arrays by tap; a message where it gives up."""
    x, y = fake["2048"], real["2048"]
    values = {}

    def put(name, compute):
        try:
            values[name] = float(compute())
        except ValueError as error:
            values[name] = str(error)

    if tool == "torch-fidelity":
        first, second = torch.from_numpy(x), torch.from_numpy(y)
        if "fid" in wanted:
            put("fid", lambda: fid_statistics_to_metric(*map(fid_features_to_statistics, (first, second)), False)["frechet_inception_distance"])
        if "kid_subsets" in wanted:
            kid = kid_features_to_metric(first, second, kid_subsets=SUBSETS, kid_subset_size=subset_size, verbose=False)
            values["kid_subsets"], values["kid_subsets (std)"] = kid.values()
        if "is" in wanted:
            values["is"] = isc_features_to_metric(torch.from_numpy(fake["logits_unbiased"]))["inception_score_mean"]
        if {"precision", "recall"} & set(wanted):
            prc = prc_features_to_metric(first, second, verbose=False)
            values.update({name: prc[name] for name in ("precision", "recall") if name in wanted})
    elif tool == "pytorch-fid" and "fid" in wanted:
        statistics = lambda a: (a.mean(0), np.cov(a, rowvar=False))
        put("fid", lambda: pytorch_fid.fid_score.calculate_frechet_distance(*statistics(x), *statistics(y)))
    elif tool == "clean-fid":
        if "fid" in wanted:
            put("fid", lambda: cleanfid.fid.fid_from_feats(x, y))
        if "kid" in wanted and len(x) == len(y):
            # One subset of everything is the estimate from all pairs, in whatever order it is drawn.
            values["kid"] = cleanfid.fid.kernel_distance(x, y, num_subsets=1, max_subset_size=len(x))
    if "fid" in wanted:
        values["fid (exact)"] = exact_fid(x, y)
    return values


# scalebench ---------------------------------------------------------------------------------------------------------


class Ours:
    def __init__(self, args, weights, root):
        self.args, self.weights, self.root = args, weights, root
        self.found = {}

    def run(self, command, *rest):
        command = [self.args.scalebench, command, *rest, "--extractor", self.weights]
        done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"failed: {' '.join(map(str, command))}")
        return done.stdout

    def features(self, folder, profile, tap):
        key = (folder, profile, tap)
        if key not in self.found:
            out = self.root / f"{folder.name}.{profile}.{tap}.safetensors"
            self.run("features", "--images", folder, "--preprocess", profile, "--tap", tap, "--out", out)
            found = load_file(out)
            self.found[key] = [Path(name).name for name in json.loads(found["names"].tobytes())], found["features"]
        return self.found[key]

    def metrics(self, wanted, real, fake, profile, subset_size):
        rest = ["--kid-subsets", SUBSETS, "--kid-subset-size", subset_size] if "kid_subsets" in wanted else []
        found = json.loads(self.run("score", "--real", real, "--fake", fake, "--metrics", ",".join(wanted), "--preprocess", profile, *rest, "--json"))
        values = {name: found[name]["mean" if name == "kid_subsets" else "value"] for name in wanted}
        if "kid_subsets" in wanted:
            values["kid_subsets (std)"] = found["kid_subsets"]["std"]
        return values


# The comparison -----------------------------------------------------------------------------------------------------


class Table:
    """Rows as they are found; a row with a tolerance counts for the exit status."""

    failed = 0

    def __init__(self, title, head):
        print(f"\n## {title}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")

    def row(self, *cells, off, tolerance=None):
        tail = [f"{off:.1e}"]
        if tolerance is not None:
            fine = off <= tolerance
            Table.failed += not fine
            tail += [f"{tolerance:.0e}", "yes" if fine else "**no**"]
        print(f"| {' | '.join([*cells, *tail])} |", flush=True)


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        compare(args, args.work or Path(temporary))
    if Table.failed:
        sys.exit(f"{Table.failed} differences above their tolerance")


def compare(args, root):
    folders = make_folders(args, root / f"images-{args.images}-{'-'.join(map(str, args.sizes))}")
    weights = args.weights or root / "hash-weights.pth"
    if not weights.exists():
        write_hash_weights(weights)
    tools, ours = Tools(weights), Ours(args, weights, root)
    print(f"torch-fidelity {torch_fidelity.__version__}, torch {torch.__version__}, Pillow {pillow_version}; "
          f"{args.images} images a folder, weights {weights.name}")

    theirs, jpeg, otherwise = {}, [], []
    head = ["folder", "files", "tool", "profile", "tap", "largest difference / rms", "tolerance", "within"]
    table = Table("Features", head)
    for name, folder in folders.items():
        for tool, function, profile in PROFILES:
            names, taps = theirs[name, tool] = function(tools, folder)
            for tap, want in taps.items():
                if tap != "2048" and "is" not in args.metrics:
                    continue
                our_names, got = ours.features(folder, profile, tap)
                if our_names != names:
                    sys.exit(f"{name}: {tool} reads {names}, scalebench {our_names}")
                off = np.abs(got - want).max(1) / np.sqrt(np.square(want).mean())
                # Files by what their decoder may do: lossy ones have a table of their own.
                lossy = np.array([file.endswith(".jpg") for file in names])
                cells = (tool, profile, tap)
                if name == "grey-16-bit":
                    otherwise.append((names[0], *cells, off.max()))
                elif (~lossy).any():
                    table.row(name, f"{(~lossy).sum()} PNG", *cells, off=off[~lossy].max(), tolerance=FEATURES)
                if name == "modes" and off.max() > FEATURES:
                    for file, value in zip(names, off):
                        table.row(name, file, *cells, off=value, tolerance=FEATURES)
                if name == "jpeg":
                    # Decoded by Pillow, then only the decoder is out of the comparison.
                    _, decoded = ours.features(folders["jpeg-as-png"], profile, tap)
                    same = np.abs(decoded - want).max(1) / np.sqrt(np.square(want).mean())
                    jpeg += [(name, file, *cells, a, b) for file, a, b in zip(names, off, same)]
                elif lossy.any():
                    jpeg.append((name, f"{lossy.sum()} JPEG", *cells, off[lossy].max(), None))

    table = Table("JPEG decoders", [*head[:5], "decoded by Pillow", *head[5:]])
    for *cells, off, same in jpeg:
        table.row(*cells, "" if same is None else f"{same:.1e}", off=off, tolerance=JPEG)
        Table.failed += same is not None and same > FEATURES

    table = Table("Metrics", ["real", "generated", "tool", "metric", "by the tool", "by scalebench", "difference", "tolerance", "within"])
    first, last = args.sizes[0], args.sizes[-1]
    # Other drawings at one size; and the same at two, which only the resize tells apart.
    pairs = [(f"png-{first}", f"other-{first}"), (f"png-{first}", f"png-{last}")]
    for real, fake in pairs if first != last else pairs[:1]:
        for tool, _, profile in PROFILES[:3]:
            (_, a), (_, b) = theirs[real, tool], theirs[fake, tool]
            subset_size = args.images // 2
            values = tool_metrics(tool, args.metrics, a, b, subset_size)
            wanted = [name for name in args.metrics if name in values]
            got = ours.metrics(wanted, folders[real], folders[fake], profile, subset_size)
            if "fid (exact)" in values:
                got["fid (exact)"] = got["fid"]
            if tool == "pytorch-fid" and "fid_npz" in args.metrics:
                # pytorch-fid's --save-stats, for a reference that is known by its statistics only.
                statistics = root / f"{real}.npz"
                np.savez_compressed(statistics, mu=a["2048"].mean(0), sigma=np.cov(a["2048"], rowvar=False))
                values["fid_npz"] = exact_fid(b["2048"], a["2048"])
                got["fid_npz"] = ours.metrics(["fid"], statistics, folders[fake], profile, subset_size)["fid"]
            for name, value in values.items():
                if isinstance(value, str):
                    print(f"| {real} | {fake} | {tool} | {name} | fails: {value} | {got[name]:.8g} | | | |")
                    continue
                scale = mean_kernel(a["2048"], b["2048"]) if name.startswith("kid") else abs(value)
                off = abs(got[name] - value) / max(scale, 1e-12)
                table.row(real, fake, tool, name, f"{value:.8g}", f"{got[name]:.8g}", off=off, tolerance=TOLERANCE[name])

    table = Table("Otherwise on purpose", ["file", "tool", "profile", "tap", "largest difference / rms"])
    for *cells, off in otherwise:
        table.row(*cells, off=off)
    print("\nPillow clips 16-bit grey at 255, so that the tools see a white image; scalebench takes the high byte, as of colour.")


if __name__ == "__main__":
    main()
