"""The picture of the page in docs/: PYTHONPATH=tests/support:. python -m app_screenshot PATH"""

import sys
from pathlib import Path

from app_browser import browser
from PIL import Image
from running_app import running

from deeplab.app.server import Server

SIZE = {"width": 1180, "height": 800}


def main(path: Path) -> None:
    with browser() as opened, running(Server()) as port:
        page = opened.new_page(viewport=SIZE, color_scheme="light")
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("body[data-state=done]")
        page.reload()  # once more with all that the first view loads
        page.wait_for_selector("body[data-state=done]")
        page.get_by_text("Before / after").click()
        page.locator("#compare").fill("36")
        page.wait_for_timeout(300)
        page.screenshot(path=path)
    # Of 64 levels a channel: a photograph is a much smaller PNG then, and looks the same
    picture = Image.open(path).convert("RGB")
    picture.point(lambda level: (level >> 2) * 255 // 63).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
