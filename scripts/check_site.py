#!/usr/bin/env python3
"""Opens every page of a site in a headless browser, as a laptop and as a phone, and fails on whatever a reader would trip over.

    scalebench site --out site reports/site.yaml
    python scripts/check_site.py site [--screenshots DIR] [--chromium PATH]

Checked on every page, in light and dark and on 360 pixels: no console message of level error, no exception, no request but for files
of the site, nothing that makes the page scroll sideways, contrast of text, every image decoded and described, headings in order, every
link and anchor there. By keyboard: the way to the content, a visible focus on everything that takes it, sorting, filters, the slider. By touch:
the slider. And that the best method at a size and its cost are two clicks away. With --screenshots it writes one of every kind of page
there, in 64 colours if Pillow is installed. Needs the PyPI package playwright, and a Chromium: Debian's package `chromium`, or
`playwright install chromium`.
"""

import argparse
import re
from pathlib import Path

import browser
from browser import DARK, LAPTOP, PHONE, check

VIEWS = {"laptop": LAPTOP, "dark": DARK, "phone": PHONE}
MOST_BYTES = 15_000_000
KINDS = ["index", "costs", "compare", "methods", "protocols", "runs", "method-", "protocol-", "run-"]

# Whatever assistive technology would stumble over.
FAULTS = """() => {
  const faults = [];
  let level = 0;
  for (const e of document.querySelectorAll("h1, h2, h3, h4")) {
    if (!e.checkVisibility()) continue;
    const found = Number(e.tagName[1]);
    if (found > level + 1) faults.push(`heading ${e.textContent} after level ${level}`);
    level = found;
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  ids.filter((id, i) => ids.indexOf(id) !== i).forEach((id) => faults.push(`id ${id} twice`));
  for (const e of document.images) if (!e.alt.trim()) faults.push(`no text for ${e.src}`);
  for (const e of document.querySelectorAll("a, button, select, input")) {
    const name = e.textContent.trim() || e.ariaLabel || e.querySelector("img")?.alt || (e.labels && e.labels.length && e.labels[0].textContent.trim());
    if (!name) faults.push(`no name: ${e.outerHTML.slice(0, 80)}`);
  }
  for (const e of document.querySelectorAll("table")) if (!e.caption) faults.push("a table without a caption");
  for (const e of document.querySelectorAll("[aria-labelledby]")) {
    if (!document.getElementById(e.getAttribute("aria-labelledby"))) faults.push(`labelled by nothing: ${e.outerHTML.slice(0, 80)}`);
  }
  if (document.querySelectorAll("h1").length !== 1) faults.push("not one h1");
  return faults.slice(0, 5);
}"""

# The focused element: what it is, whether it is seen, and whether its focus is.
FOCUS = """() => {
  const e = document.activeElement;
  if (!e || e === document.body) return null;
  const [box, style] = [e.getBoundingClientRect(), getComputedStyle(e)];
  const isSeen = box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  return { what: e.outerHTML.slice(0, 80), isSeen, hasOutline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0 };
}"""


class Site:
    """A browser's view of the site, which notes what goes wrong."""

    def __init__(self, chromium, folder, name, screenshots):
        self.folder, self.name, self.screenshots = folder, name, screenshots
        self.context = chromium.new_context(**VIEWS[name])
        self.page = self.context.new_page()
        self.faults = []
        root = folder.resolve().as_uri() + "/"
        browser.watch(self.page, lambda url: url.startswith(root), self.faults)
        # Those of a page that was left while it loaded do not count.
        aborted = "net::ERR_ABORTED"
        self.page.on("requestfailed", lambda r: None if r.failure == aborted else self.faults.append(f"failed: {r.url}: {r.failure}"))

    def open(self, file):
        self.page.goto("about:blank")
        self.page.goto((self.folder / file.split("#")[0]).resolve().as_uri() + (f"#{file.split('#')[1]}" if "#" in file else ""), wait_until="load")

    def check(self, condition, message):
        check(condition, f"{self.name}: {self.page.url.rsplit('/', 1)[-1]}: {message}")

    def shoot(self, what):
        if not self.screenshots:
            return
        path = self.screenshots / f"site-{what}.png"
        self.page.screenshot(path=path)
        try:
            from PIL import Image
        except ImportError:
            return
        Image.open(path).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)

    def close(self):
        check(not self.faults, f"{self.name}: {self.faults[:5]}")
        self.context.close()


def look(site, file):
    """What must hold on every page."""
    site.open(file)
    browser.look(site.page, f"{site.name}: {file}")
    faults = site.page.evaluate(FAULTS.replace("for (const e of document.images) if", "for (const e of document.images) if (e.src) if"))
    site.check(not faults, f"{faults}")
    site.check(not site.faults, f"{site.faults[:3]}")


def links(site, files):
    """Every link leads to a page, or a part of one, that is there."""
    ids = {file: set(re.findall(r'\sid="([^"]*)"', (site.folder / file).read_text(encoding="utf-8"))) for file in files}
    for file in files:
        for href in re.findall(r'\shref="([^"]*)"', (site.folder / file).read_text(encoding="utf-8")):
            if href.startswith("data:"):
                continue
            target, _, part = href.partition("#")
            target = target or file
            check(target in ids, f"{file}: a link to {target}, which is not there")
            pairs = target == "compare.html" and re.fullmatch(r"\d+-\d+-\d+-\d+", part)
            check(not part or part in ids[target] or pairs, f"{file}: a link to {href}, which is not there")


def walk(site, file):
    """By keyboard: first the way to the content, then a visible focus on all that takes it."""
    site.open(file)
    page = site.page
    page.keyboard.press("Tab")
    site.check(page.evaluate("document.activeElement.classList.contains('skip')"), "the first stop is not the way to the content")
    page.keyboard.press("Enter")
    site.check(page.evaluate("document.activeElement.id") == "content", "the way to the content does not lead there")
    site.open(file)
    seen = set()
    for _ in range(70):
        page.keyboard.press("Tab")
        focus = page.evaluate(FOCUS)
        if focus is None:
            break
        seen.add(focus["what"])
        site.check(focus["isSeen"], f"the focus is out of sight: {focus['what']}")
        site.check(focus["hasOutline"], f"the focus does not show: {focus['what']}")
    site.check(len(seen) > 5, f"only {len(seen)} stops")


def leaderboard(site):
    """Sorting and filters, by keyboard."""
    site.open("index.html")
    page = site.page
    values = """(i) => [...document.querySelectorAll(".board:not([hidden]) table")].map((table) => [...table.tBodies].map((body) =>
      [...body.querySelectorAll("tr[data-method]")].map((row) => row.children[i].dataset.value).filter((v) => v !== undefined).map(Number)))"""
    button = page.locator(".board").first.locator("thead button").nth(1)
    for direction, sign in [("ascending", 1), ("descending", -1)]:
        button.focus()
        page.keyboard.press("Enter")
        site.check(button.locator("xpath=..").get_attribute("aria-sort") == direction, f"Enter does not sort, {direction}")
        for body in page.evaluate(values, 1)[0]:
            site.check(body == sorted(body, key=lambda v: sign * v), f"not {direction}: {body}")
    boards = page.locator(".board:visible")
    n_boards = boards.count()
    scales = page.locator("select[name=scale]")
    wanted = scales.locator("option").last.get_attribute("value")
    scales.focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    if scales.input_value() != wanted:
        scales.select_option(wanted)
    left = page.evaluate("[...document.querySelectorAll('.board:not([hidden])')].map((e) => e.dataset.scale)")
    site.check(left and set(left) == {wanted}, f"the filter by scale {wanted} leaves {left}")
    metric = page.locator("select[name=metric]")
    name = metric.locator("option").nth(1).get_attribute("value")
    metric.select_option(name)
    shown = page.evaluate("[...new Set([...document.querySelectorAll('.board [data-metric]')].filter((e) => e.checkVisibility()).map((e) => e.dataset.metric))]")
    site.check(shown == [name], f"the filter by metric {name} leaves {shown}")
    page.locator("input[name=method]").fill("direct")
    rows = page.evaluate("[...document.querySelectorAll('tr[data-method]')].filter((e) => e.checkVisibility()).map((e) => e.dataset.method)")
    site.check(rows and all("direct" in row.lower() for row in rows), f"the filter by method leaves {rows}")
    page.locator("input[name=method]").fill("no such method")
    site.check(page.locator("#none").is_visible() and boards.count() == 0, "nothing is left, and the page does not say so")
    page.locator("input[name=method]").fill("")
    metric.select_option("")
    scales.select_option("")
    site.check(boards.count() == n_boards, "filters that are taken back leave something hidden")


def answer(site):
    """Which method at the largest size, and what it costs: on the first page, and its page one click away."""
    site.open("index.html")
    row = site.page.locator(".answers tbody tr").last
    name = row.locator("td").nth(0).inner_text()
    cost = row.locator("td").nth(2).inner_text()
    site.check(re.search(r"\d.*s", cost), f"no cost of {name}: {cost!r}")
    row.locator("td").nth(0).locator("a").click()
    site.check(site.page.locator("h1").inner_text() == name, f"the link does not lead to {name}")
    site.check(site.page.locator("section[aria-labelledby=results] table").count() > 0, f"no results on the page of {name}")


def compare(site):
    """The slider, by keyboard or touch, flicker, swap, prompts, and an address that opens the same again."""
    site.open("compare.html")
    page = site.page
    clip = lambda: page.evaluate("document.querySelector('.pair .b').style.clipPath")
    share = page.locator("input[name=share]")
    before = clip()
    if VIEWS[site.name].get("has_touch"):
        box = page.locator(".pair").bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2)
        site.check(15 <= float(share.input_value()) <= 25, f"a tap at a fifth moves the border to {share.input_value()}")
    else:
        share.focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        site.check(share.input_value() == "55", f"arrow keys move the border to {share.input_value()}")
    site.check(clip() != before, "the border moves, and the image does not")
    alts = lambda: page.locator(".pair img").evaluate_all("(images) => images.map((i) => [i.alt, i.src])")
    first = alts()
    site.check(first[0][1] != first[1][1], f"both sides show the same: {first}")
    for button in ["Swap", "prompt →"]:
        was = alts()
        page.get_by_role("button", name=button).click()
        site.check(alts() != was, f"{button} does nothing")
    flicker = page.locator("[data-flicker]")
    flicker.click()
    states = set()
    for _ in range(6):
        page.wait_for_timeout(250)
        states.add(clip())
    site.check(len(states) == 2 and flicker.get_attribute("aria-pressed") == "true", f"flicker shows {states}")
    flicker.click()
    site.check(clip() == f"inset(0px 0px 0px {share.input_value()}%)", f"after flickering the border is not where it was: {clip()}")
    now, address = alts(), page.url.rsplit("/", 1)[-1]
    site.open(address)
    site.check(alts() == now, f"{address} shows something else: {alts()} in place of {now}")
    site.shoot("compare" if site.name == "laptop" else f"compare-{site.name}")


def method(site, files):
    """From a method's page to its comparison with plain sampling; its samples enlarged."""
    file = next(f for f in files if f.startswith("method-") and "compare.html#" in (site.folder / f).read_text(encoding="utf-8"))
    site.open(file)
    page = site.page
    title = page.locator("h1").inner_text()
    page.locator(".tile").first.click()
    site.check(page.evaluate("document.getElementById('lightbox').open"), "a click does not open the lightbox")
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Compare with plain sampling").first.click()
    sides = [page.locator(f"select[name={side}] option:checked").inner_text() for side in "ab"]
    site.check(sides == ["Direct-Inf", title], f"the comparison is of {sides}")


def screenshots(site, files):
    kinds = {"index": "index.html", "costs": "costs.html"} if site.name == "laptop" else {f"index-{site.name}": "index.html"}
    if site.name == "laptop":
        kinds |= {"method": "method-scalecrafter.html", "protocol": "protocol-scalecrafter.html"}
    for name, file in kinds.items():
        if file in files:
            site.open(file)
            site.shoot(name)
    site.open("index.html")
    site.page.evaluate("document.getElementById('boards').scrollIntoView()")
    site.shoot("boards" if site.name == "laptop" else f"boards-{site.name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument("--screenshots", type=Path)
    browser.add_option(parser)
    arguments = parser.parse_args()
    folder = arguments.site
    files = sorted(path.name for path in folder.glob("*.html"))
    if "index.html" not in files:
        parser.error(f"{folder}: expected a site's folder, with index.html")
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    with browser.browser(arguments) as chromium:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        check(size < MOST_BYTES, f"{size} bytes, expected at most {MOST_BYTES}")
        missing = [kind for kind in KINDS if not any(file.startswith(kind) for file in files)]
        check(not missing, f"no page of the kinds {missing}")
        for name in VIEWS:
            site = Site(chromium, folder, name, arguments.screenshots)
            for file in files:
                look(site, file)
            if name == "laptop":
                links(site, files)
                for kind in KINDS:
                    walk(site, next(file for file in files if file.startswith(kind)))
                answer(site)
                method(site, files)
            leaderboard(site)
            compare(site)
            screenshots(site, files)
            site.close()
            print(f"{name}: {len(files)} pages: ok")


if __name__ == "__main__":
    main()
