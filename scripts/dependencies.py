#!/usr/bin/env python3
"""What the program is built from: which crates hold unsafe or native code, and which have a known advisory.

usage: scripts/dependencies.py [--advisories DIR] > reports/dependencies.md

DIR is a clone of https://github.com/rustsec/advisory-db. Crates are those of the program's own tree on this system
(`cargo tree --edges normal,build`), their sources those that cargo has downloaded. Lines that name `unsafe` are counted, comments left
out; native code is C, C++ or assembly in the package that its build script may compile, or a library that it links.
"""
import argparse
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
NATIVE = {".c", ".cc", ".cpp", ".s", ".asm", ".cu"}


def packages():
    """Name, version and folder of every crate in the program's tree."""
    metadata = subprocess.run(["cargo", "tree", "--locked", "--offline", "-p", "scalebench", "--edges", "normal,build", "--prefix", "none",
                               "--format", "{p}"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = set()
    for line in metadata.splitlines():
        match = re.match(r"(\S+) v(\S+)", line)
        if match and "(/" not in line:
            found.add(match.groups())
    registry = sorted((pathlib.Path.home() / ".cargo/registry/src").glob("*"))
    for name, version in sorted(found):
        folder = next((at / f"{name}-{version}" for at in registry if (at / f"{name}-{version}").is_dir()), None)
        yield name, version, folder


def unsafe_lines(folder):
    n = 0
    for file in folder.rglob("*.rs"):
        if {"tests", "benches", "examples"} & set(file.relative_to(folder).parts[:-1]):
            continue
        for line in file.read_text(errors="replace").splitlines():
            code = line.split("//")[0]
            n += bool(re.search(r"\bunsafe\b", code))
    return n


def native(folder):
    files = [f for f in folder.rglob("*") if f.suffix.lower() in NATIVE and not {"tests", "benches", "examples"} & set(f.relative_to(folder).parts)]
    manifest = tomllib.loads((folder / "Cargo.toml").read_text())
    links = manifest.get("package", {}).get("links")
    has_build = (folder / "build.rs").exists() or isinstance(manifest.get("package", {}).get("build"), str)
    words = []
    if files and has_build:
        words.append(f"{len(files)} C, C++ or assembly files")
    if links:
        words.append(f"links `{links}`")
    return ", ".join(words)


def parts(version):
    core = re.split(r"[-+]", version)[0].split(".")
    numbers = [int(part) for part in core]
    return tuple(numbers + [0] * (3 - len(numbers))), "-" not in version


def fits(version, requirement):
    """Whether a version is inside a comma separated requirement of an advisory."""
    for part in requirement.split(","):
        match = re.match(r"\s*(>=|<=|>|<|=|\^|~)?\s*([0-9][^\s]*)", part)
        operator, bound = match.group(1) or "^", parts(match.group(2).rstrip(".*"))
        this = parts(version)
        upper = bound[0]
        if operator == "^":
            first = next((i for i, n in enumerate(upper) if n), 2)
            limit = tuple(n + 1 if i == first else (n if i < first else 0) for i, n in enumerate(upper))
            ok = this >= bound and this[0] < limit
        elif operator == "~":
            ok = this >= bound and this[0] < (upper[0], upper[1] + 1, 0)
        else:
            ok = {">=": this >= bound, "<=": this <= bound, ">": this > bound, "<": this < bound, "=": this == bound}[operator]
        if not ok:
            return False
    return True


def advisories(folder, known):
    for file in sorted(folder.glob("crates/*/*.md")):
        if file.parent.name not in known:
            continue
        text = file.read_text()
        front = tomllib.loads(re.search(r"```toml\n(.*?)```", text, re.S).group(1))
        about, versions = front["advisory"], front.get("versions", {})
        if "withdrawn" in about:
            continue
        title = re.search(r"^# (.*)$", text, re.M).group(1)
        for version in known[about["package"]]:
            if not any(fits(version, r) for r in versions.get("patched", []) + versions.get("unaffected", [])):
                yield about["id"], about["package"], version, about.get("informational", "vulnerability"), title


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--advisories", type=pathlib.Path)
    args = parser.parse_args()
    rows, known, safe, absent = [], {}, 0, 0
    for name, version, folder in packages():
        known.setdefault(name, set()).add(version)
        if folder is None:
            absent += 1
            continue
        lines, kind = unsafe_lines(folder), native(folder)
        if lines or kind:
            rows.append((name, version, lines, kind))
        else:
            safe += 1
    print("# What the program is built from\n")
    print(f"`scripts/dependencies.py`: {len(rows) + safe + absent} crates of others, of which {safe} hold neither unsafe nor native code; the rest:\n")
    print("| crate | version | lines with `unsafe` | native code |\n| --- | --- | ---: | --- |")
    for name, version, lines, kind in rows:
        print(f"| {name} | {version} | {lines} | {kind} |")
    if absent:
        print(f"\nOf {absent} crates the source was not at hand.")
    if args.advisories:
        date = subprocess.run(["git", "-C", args.advisories, "log", "-1", "--format=%cs"], capture_output=True, text=True).stdout.strip()
        found = list(advisories(args.advisories, known))
        print(f"\n## Advisories\n\nAgainst the RustSec advisory database{f' of {date}' if date else ''}: {len(found) or 'none'} {'concern' if len(found) != 1 else 'concerns'} these versions.\n")
        if found:
            print("| advisory | crate | version | kind | title |\n| --- | --- | --- | --- | --- |")
            for row in found:
                print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    sys.exit(main())
