#!/usr/bin/env python3
"""Opens a report in a headless browser, as a laptop and as a phone, and fails on whatever a reader would trip over.

    python scripts/check_report.py RUN/report/index.html [--screenshots DIR] [--chromium PATH]

Checked: no console message of level error, no exception, no request but the file itself, nothing that makes the page
scroll sideways, every image decoded, the lightbox by click and by keys, no hostile text that became an element, printing.
With --screenshots it writes desktop.png, desktop-dark.png, desktop-lightbox.png, phone.png and more there.
Needs the PyPI package playwright, and a Chromium: Debian's package `chromium`, or `playwright install chromium`.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

VIEWS = {
    "desktop": {"viewport": {"width": 1280, "height": 800}},
    "desktop-dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 1},
}

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


def look(browser, page_file, name, options, screenshots):
    """One view: every check, then the screenshots."""
    context = browser.new_context(**options)
    page = context.new_page()
    faults, requests = [], []
    page.on("console", lambda message: faults.append(f"console: {message.text}") if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(f"exception: {error}"))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url) if not request.url.startswith("data:") else None)
    url = page_file.resolve().as_uri()
    page.goto(url, wait_until="load")

    page.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = true))")
    found = page.evaluate(OVERFLOW)
    check(found["scroll"] <= found["width"] and not found["wide"], f"{name}: wider than the window: {found}")
    low = page.evaluate(CONTRAST)
    check(not low, f"{name}: too little contrast: {low}")
    broken = page.evaluate("[...document.images].filter((i) => i.src && !(i.complete && i.naturalWidth)).map((i) => i.alt)")
    check(not broken, f"{name}: images that do not decode: {broken}")
    scripts = page.evaluate("[document.scripts.length, document.querySelectorAll('iframe, object, [onerror], [onclick]').length]")
    check(scripts == [1, 0], f"{name}: elements that are not ours: {scripts}")
    page.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = false))")

    def shoot(what, **more):
        if screenshots:
            page.screenshot(path=screenshots / f"{name}{what}.png", **more)

    shoot("")
    for section in ["charts", "samples", "schedules", "provenance"]:
        page.evaluate(f"document.getElementById('{section}').scrollIntoView()")
        shoot(f"-{section}")
    page.evaluate("scrollTo(0, 0)")

    tiles = page.locator(".tile")
    if tiles.count():
        is_open = "document.getElementById('lightbox').open"
        image = page.locator("#lightbox img")
        last_row = page.locator(".samples tbody").first.locator("tr").count() - 1
        tiles.first.scroll_into_view_if_needed()
        (tiles.first.tap if options.get("has_touch") else tiles.first.click)()
        check(page.evaluate(is_open), f"{name}: a click does not open the lightbox")
        first = image.get_attribute("alt")
        check(first == tiles.first.locator("img").get_attribute("alt"), f"{name}: the lightbox shows another image: {first}")
        for _ in range(last_row):
            page.keyboard.press("ArrowDown")
        bottom = page.locator(".samples tbody").first.locator("tr").last.locator(".tile").first
        check(image.get_attribute("alt") == bottom.locator("img").get_attribute("alt"), f"{name}: ArrowDown does not go through the methods")
        page.keyboard.press("ArrowDown")
        check(image.get_attribute("alt") == bottom.locator("img").get_attribute("alt"), f"{name}: there is nothing below the last method")
        box = page.evaluate("(() => { const b = document.querySelector('#lightbox img').getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom] })()")
        size = options["viewport"]
        check(box[0] >= 0 and box[1] >= 0 and box[2] <= size["width"] and box[3] <= size["height"], f"{name}: the enlarged image is cut off: {box}")
        shoot("-lightbox")
        page.locator("#lightbox button", has_text="prompt →").click()
        check(image.get_attribute("alt") != bottom.locator("img").get_attribute("alt"), f"{name}: the button does not go to the next prompt")
        page.keyboard.press("Escape")
        check(not page.evaluate(is_open), f"{name}: Escape does not close the lightbox")
        focus = page.evaluate("document.activeElement.className")
        check(focus == "tile", f"{name}: after the lightbox the focus is on {focus!r}")
        page.keyboard.press("Enter")
        check(page.evaluate(is_open), f"{name}: Enter does not open the lightbox")
        page.locator("#lightbox [data-close]").click()
        check(not page.evaluate(is_open), f"{name}: Close does not close the lightbox")

    if name == "desktop":
        pdf = page.pdf(format="A4")
        check(len(pdf) > 10_000, f"{name}: printing gives {len(pdf)} bytes")
        if screenshots:
            (screenshots / "print.pdf").write_bytes(pdf)
    check(not faults, f"{name}: {faults}")
    check(requests == [url], f"{name}: requests: {requests}")
    context.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--screenshots", type=Path)
    parser.add_argument("--chromium", help="the browser [default: the one on the PATH, else playwright's own]")
    arguments = parser.parse_args()
    if not arguments.page.is_file():
        parser.error(f"{arguments.page}: expected a report's index.html")
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    executable = arguments.chromium or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            for name, options in VIEWS.items():
                look(browser, arguments.page, name, options, arguments.screenshots)
                print(f"{name}: ok")
        except Failure as failure:
            sys.exit(f"error: {failure}")
        finally:
            browser.close()


if __name__ == "__main__":
    main()
