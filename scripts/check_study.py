#!/usr/bin/env python3
"""Answers a page of `scalebench grid --blind` in a headless browser, by keyboard and by touch, and checks that the file it hands out
is what was chosen.

    python scripts/check_study.py STUDY.html STUDY.key.json [--out DIR] [--scalebench BIN] [--chromium PATH]

Two voters: one with arrow keys, who goes back once and changes a choice, and comes back after a reload; one who touches the images of
a phone. Their files go through `scalebench votes`, whose counts are compared with what was pressed. Fails on any console message of
level error, exception, request, or sideways scrolling. Needs the PyPI package playwright, and a Chromium.
"""

import argparse
import csv
import io
import json
import subprocess
import tempfile
from pathlib import Path

from browser import LAPTOP, PHONE, add_option, browser, check, watch


def open_page(chromium, file, options):
    page = chromium.new_context(**options).new_page()
    faults = []
    watch(page, lambda url: url.startswith("file:"), faults)
    page.goto(file.resolve().as_uri(), wait_until="load")
    return page, faults


def loaded(page):
    page.wait_for_function("['left-image', 'right-image'].every((id) => { const i = document.getElementById(id); return i.complete && i.naturalWidth > 0 })")


def saved(page, out):
    """What the link hands out, and that the text beside it is the same."""
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(out)
    text = out.read_text()
    check(text == page.input_value("#csv"), "the file differs from the text that is shown")
    return [row["choice"] for row in csv.DictReader(io.StringIO(text))]


def by_keys(chromium, file, n, out):
    page, faults = open_page(chromium, file, LAPTOP)
    wanted = ["left" if i % 3 else "right" for i in range(n)]
    press = lambda side: page.keyboard.press("ArrowLeft" if side == "left" else "ArrowRight")
    for i, side in enumerate(wanted):
        loaded(page)
        check(page.inner_text("#count") == f"{i + 1} of {n}", f"pair {i + 1} is called {page.inner_text('#count')}")
        if i == 1:
            # A wrong choice, taken back.
            press("left" if side == "right" else "right")
            page.keyboard.press("Backspace")
            check(page.inner_text("#count") == f"{i + 1} of {n}", "backspace does not go back")
        press(side)
        if i == n // 2 - 1:
            page.reload(wait_until="load")
    check(page.is_visible("#done") and page.evaluate("document.activeElement.id") == "save", "the end is not reached by keys alone")
    check(saved(page, out) == wanted, "the file is not what was pressed")
    check(not faults, faults)
    return wanted


def by_touch(chromium, file, n, out):
    page, faults = open_page(chromium, file, PHONE)
    wanted = ["right" if i % 2 else "left" for i in range(n)]
    for side in wanted:
        loaded(page)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        check(wide <= 0, f"the page is {wide} pixels wider than a phone")
        page.tap(f"#{side}-image")
    check(saved(page, out) == wanted, "the file is not what was touched")
    check(not faults, faults)
    return wanted


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("key", type=Path)
    parser.add_argument("--out", type=Path, help="folder of the votes")
    parser.add_argument("--scalebench", default=str(Path(__file__).resolve().parent.parent / "target/release/scalebench"))
    add_option(parser)
    args = parser.parse_args()
    with browser(args) as chromium:
        key = json.loads(args.key.read_text())
        text = args.study.read_text()
        for method in (key["a"], key["b"]):
            check(not any(f'"{name}"' in text for name in method), f"the page names {method}")
        out = args.out or Path(tempfile.mkdtemp())
        out.mkdir(parents=True, exist_ok=True)
        n = len(key["pairs"])
        voters = [by_keys(chromium, args.study, n, out / "keys.csv"), by_touch(chromium, args.study, n, out / "touch.csv")]
        command = [args.scalebench, "votes", "--json", "--key", args.key, out / "keys.csv", out / "touch.csv"]
        found = json.loads(subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout)
        wins = sum((side == "left") == pair["a_is_left"] for sides in voters for side, pair in zip(sides, key["pairs"]))
        check((found["votes"]["wins"], found["votes"]["of"]) == (wins, 2 * n), f"votes says {found['votes']}, expected {wins} of {2 * n}")
        print(f"{n} pairs by keys and by touch: {wins} of {2 * n} for {key['a'][1]}, as pressed")


if __name__ == "__main__":
    main()
