"""What the scripts have in common that look at pages in a headless browser: windows, what a reader would trip over on any page, and a
browser that is closed whatever happens.

Needs the PyPI package playwright, and a Chromium: Debian's package `chromium`, or `playwright install chromium`.
"""

import shutil
import sys
from contextlib import contextmanager

from playwright.sync_api import sync_playwright

LAPTOP = {"viewport": {"width": 1280, "height": 800}}
DARK = LAPTOP | {"color_scheme": "dark"}
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True, "device_scale_factor": 1}

# What is wider than the window and not inside something that scrolls by itself.
OVERFLOW = """() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (e) => e && e !== document.body && (getComputedStyle(e).overflowX !== "visible" || scrolls(e.parentElement));
  const wide = [...document.querySelectorAll("body *")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width > 0 && (box.right > width + 1 || box.left < -1) && !scrolls(e) && !e.closest("svg, .hidden");
  });
  return {
    width, scroll: document.documentElement.scrollWidth,
    wide: wide.slice(0, 5).map((e) => `${e.tagName} ${e.className}: ${e.textContent.slice(0, 60)}`),
  };
}"""

# Contrast of text with what is behind it, by WCAG 2.1; the least of 4.5 holds for small letters.
CONTRAST = """() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parse = (text) => { const m = text.match(/[\\d.]+/g).map(Number); return { rgb: m.slice(0, 3), alpha: m.length > 3 ? m[3] : 1 }; };
  const light = (rgb) => { const [r, g, b] = rgb.map(channel); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => {
    for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.alpha === 1) return c.rgb; }
    return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
  };
  const low = [];
  for (const e of document.querySelectorAll("main *, header *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
    const style = getComputedStyle(e);
    const svg = e.closest("svg");
    const [a, b] = [light(parse(svg ? style.fill : style.color).rgb), light(behind(svg ? svg.parentElement : e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${e.tagName} ${e.textContent.trim().slice(0, 40)}`);
  }
  return low.slice(0, 5);
}"""


class Failure(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failure(message)


def watch(page, is_ours, faults):
    """Notes console messages, exceptions, dialogs, and requests for what is not ours."""
    page.on("console", lambda m: faults.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(f"exception: {error}"))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda r: None if r.url.startswith("data:") or is_ours(r.url) else faults.append(f"request: {r.url}"))


def look(page, name):
    """What must hold on every page, with all of it unfolded."""
    page.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = true))")
    found = page.evaluate(OVERFLOW)
    check(found["scroll"] <= found["width"] and not found["wide"], f"{name}: wider than the window: {found}")
    low = page.evaluate(CONTRAST)
    check(not low, f"{name}: too little contrast: {low}")
    broken = page.evaluate("[...document.images].filter((i) => i.src && !(i.complete && i.naturalWidth)).map((i) => i.alt || i.src)")
    check(not broken, f"{name}: images that do not decode: {broken[:3]}")


def add_option(parser):
    parser.add_argument("--chromium", help="the browser [default: the one on the PATH, else playwright's own]")


@contextmanager
def browser(arguments):
    """The browser of `--chromium`; a check that fails ends the program with one line."""
    with sync_playwright() as playwright:
        executable = arguments.chromium or shutil.which("chromium")
        found = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield found
        except Failure as failure:
            sys.exit(f"error: {failure}")
        finally:
            found.close()
