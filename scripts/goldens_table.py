#!/usr/bin/env python3
"""Writes reports/goldens.csv: every golden of a method, what made it, and the largest difference to it, for the methods' pages of a site.

    cargo test --release --workspace --lib -- --nocapture --test-threads 1 parity:: rivals:: 2>&1 | python scripts/goldens_table.py > reports/goldens.csv

The tests print what they compare, `GOLDEN[IMAGE] TENSOR: DIFFERENCE`; what made a golden is what its script in scripts/rival_goldens says first.
"""

import ast
import re
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent / "rival_goldens"
# Where no code is published, or none that can be run alone.
ORACLES = {
    "fam": "an oracle of the paper's equations",
    "upsample_guidance": "an oracle of the paper's equation 9",
    "deep_shrink": "an oracle of ComfyUI's node",
}
NAMES = {"hidiffusion": "hidiffusion_package"}
SCALECRAFTER = "YingqingHe/ScaleCrafter at 9dc1185"


def made_by(name):
    """What made the goldens of a rival."""
    if name in ORACLES:
        return ORACLES[name]
    text = ast.get_docstring(ast.parse((SCRIPTS / f"{NAMES.get(name, name)}.py").read_text(encoding="utf-8")))
    maker = re.match(r".*? by (.*?)(?:[,:;]| with |\.\s|$)", " ".join(text.split()))[1]
    return re.sub(r"\b([0-9a-f]{7})[0-9a-f]{33}\b", r"\1", maker).replace("`", "")


def source(golden):
    """Method and maker of a golden; None for one that is of no method."""
    if golden.startswith("loop_"):
        damped = "ndcfg" in golden or "disperse" in golden
        method = "scalecrafter-disperse" if "disperse" in golden else "scalecrafter" if damped else "redilation"
        return method, SCALECRAFTER
    if re.fullmatch(r"(sd15|sd21|sdxl)/loop_.*", golden):
        return "direct-inf", "diffusers 0.42.1"
    rival = re.fullmatch(r"(\w+?)(_pp|_wide|_aggressive)?_(sd15|sd21|sdxl)(_\w+)?", golden)
    if not rival:
        return None
    name = rival[1]
    return (f"{name}{'_pp' if rival[2] == '_pp' else ''}".replace("_", "-"), made_by(name)) if has_script(name) else None


def has_script(name):
    return (SCRIPTS / f"{NAMES.get(name, name)}.py").is_file()


def main():
    found = {}
    for line in sys.stdin:
        # The harness may write before it, on the same line.
        match = re.search(r"(?:^|\s)((?:\w+/)?\w+?)(?:\[\d+\])? (\S.*): (\d+\.\d+e-?\d+)$", line.rstrip())
        if match and source(match[1]):
            found.setdefault(match[1], []).append(float(match[3]))
    if not found:
        sys.exit("error: no comparison with a golden on stdin; expected the tests' output with --nocapture")
    print("method,golden,reference,comparisons,largest")
    for (method, maker), golden, errors in sorted((source(golden), golden, errors) for golden, errors in found.items()):
        print(f"{method},{golden},{maker},{len(errors)},{max(errors):.1e}")


if __name__ == "__main__":
    main()
