#!/usr/bin/env python3
"""Opens a report in a headless browser, as a laptop and as a phone, and fails on whatever a reader would trip over.

    python scripts/check_report.py RUN/report/index.html [--screenshots DIR] [--chromium PATH]

Checked: no console message of level error, no exception, no request but the file itself, nothing that makes the page
scroll sideways, every image decoded, the lightbox by click and by keys, no hostile text that became an element, printing.
With --screenshots it writes desktop.png, desktop-dark.png, desktop-lightbox.png, phone.png and more there.
Needs the PyPI package playwright, and a Chromium: Debian's package `chromium`, or `playwright install chromium`.
"""

import argparse
from pathlib import Path

from browser import DARK, LAPTOP, PHONE, add_option, browser, check, look, watch

VIEWS = {"desktop": LAPTOP, "desktop-dark": DARK, "phone": PHONE}


def read(browser, page_file, name, options, screenshots):
    """One view: every check, then the screenshots."""
    context = browser.new_context(**options)
    page = context.new_page()
    faults, url = [], page_file.resolve().as_uri()
    watch(page, url.__eq__, faults)
    page.goto(url, wait_until="load")
    look(page, name)
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
    context.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--screenshots", type=Path)
    add_option(parser)
    arguments = parser.parse_args()
    if not arguments.page.is_file():
        parser.error(f"{arguments.page}: expected a report's index.html")
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    with browser(arguments) as chromium:
        for name, options in VIEWS.items():
            read(chromium, arguments.page, name, options, arguments.screenshots)
            print(f"{name}: ok")


if __name__ == "__main__":
    main()
