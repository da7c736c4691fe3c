"""The picture of the page in docs/: PYTHONPATH=tests/support:. python -m app_screenshot PATH"""

import sys
from pathlib import Path

from app_browser import browser
from PIL import Image
from running_app import running

from deeplab.app.server import Server

SIZE = {"width": 1280, "height": 860}


def main(path: Path) -> None:
    with browser() as opened, running(Server()) as port:
        page = opened.new_page(viewport=SIZE, color_scheme="light")
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("body[data-state=done]")
        page.get_by_text("Before / after").click()
        page.locator("#compare").fill("36")
        page.wait_for_timeout(300)
        page.screenshot(path=path)
    # Of 256 colours: a picture of a page is small then
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
