"""The page in headless Chromium: python browser.py ADDRESS OUT PICTURES.

PICTURES holds dog.jpg, notes.jpg (a text), fifty.jpg (50 megapixels) and hundred.jpg. Writes screenshots
to OUT; prints every request that is not to ADDRESS.
"""

import sys
import time

from playwright.sync_api import sync_playwright

base, out, pictures = sys.argv[1:]
args = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
external = []
failed = []
console = []
with sync_playwright() as p:
    b = p.chromium.launch(executable_path="/usr/bin/chromium", args=args)

    def page(w, h, scheme="light", scale=1):
        c = b.new_context(
            viewport={"width": w, "height": h}, color_scheme=scheme, device_scale_factor=scale
        )
        pg = c.new_page()
        pg.on(
            "request",
            lambda r: (
                external.append(r.url) if not r.url.startswith((base, "data:", "blob:")) else None
            ),
        )
        pg.on("requestfailed", lambda r: failed.append(r.url))
        pg.on("response", lambda r: failed.append((r.status, r.url)) if r.status >= 400 else None)
        pg.on("console", lambda m: console.append(m.text) if m.type == "error" else None)
        pg.goto(base + "/")
        pg.wait_for_selector(".alexnet .drop", timeout=60000)
        return pg

    def send(pg, f, n=1, wait=True):
        pg.set_input_files(".alexnet .file", f)
        if wait:
            pg.wait_for_selector(f'.alexnet[data-finished="{n}"]', timeout=120000)
            time.sleep(0.4)

    pg = page(1100, 800)
    time.sleep(1)
    pg.screenshot(path=f"{out}/start.png", full_page=True)
    send(pg, f"{pictures}/dog.jpg")
    pg.screenshot(path=f"{out}/answer.png", full_page=True)
    send(pg, f"{pictures}/notes.jpg", 2)
    pg.screenshot(path=f"{out}/text.png", full_page=True)
    send(pg, f"{pictures}/fifty.jpg", 3)
    pg.screenshot(path=f"{out}/fifty.png", full_page=True)
    send(pg, f"{pictures}/hundred.jpg", 4)
    pg.screenshot(path=f"{out}/hundred.png", full_page=True)
    print("error line:", pg.inner_text(".alexnet .error"))
    pg = page(390, 844, scale=2)
    send(pg, f"{pictures}/dog.jpg")
    pg.screenshot(path=f"{out}/phone.png", full_page=True)
    print(
        "phone scrolls sideways:",
        pg.evaluate("document.documentElement.scrollWidth>window.innerWidth"),
    )
    pg = page(1100, 800, "dark")
    pg.click(".examples button >> nth=2")
    pg.wait_for_selector('.alexnet[data-finished="1"]', timeout=120000)
    time.sleep(0.4)
    pg.screenshot(path=f"{out}/dark.png", full_page=True)
    b.close()
print("external requests:", external)
print("failed:", failed)
print("console:", console[:6])
