"""What tests do with the page in a browser: draw, look at pixels, hold answers back."""

from collections.abc import Callable
from typing import Any

from running_app import halves

DONE = "body[data-state=done]"
NAMES = ("left", "right")
COLOURS = ([200, 40, 40], [40, 60, 200])
HEIGHT, WIDTH = 120, 180
IMAGE, MARKS = halves(HEIGHT, WIDTH)


def centre(page: Any, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of the photograph is on the page."""
    box = page.locator("#canvas").bounding_box()
    return box["x"] + (x + 0.5) / WIDTH * box["width"], box["y"] + (y + 0.5) / HEIGHT * box[
        "height"
    ]


def draw(page: Any, *points: tuple[float, float], wait: bool = True) -> None:
    page.mouse.move(*centre(page, *points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*centre(page, *point), steps=4)
    page.mouse.up()
    if wait:
        page.wait_for_selector(DONE)


def colour(page: Any, x: int, y: int) -> list[int]:
    """What the canvas shows at a pixel; red, green and blue."""
    page.wait_for_timeout(50)  # drawn with the next frame
    found = page.evaluate(
        """([x, y]) => {
            const one = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
            one.drawImage(document.querySelector("#canvas"), -x, -y);
            return [...one.getImageData(0, 0, 1, 1).data];
        }""",
        [x, y],
    )
    return list(found[:3])


def redder(page: Any, x: int, y: int) -> bool:
    """Whether the class at a pixel is "left"."""
    red, _, blue = colour(page, x, y)
    return red > blue


def focused(page: Any) -> str:
    """The name of what has the keys."""
    return str(page.evaluate("() => document.activeElement.getAttribute('aria-label') ?? ''"))


# A route stays once it is set, and lets pass: one that is taken away loses what is asked just then.


class Held(list[Any]):
    """Requests that wait until they are released."""

    released = False

    def add(self, route: Any) -> None:
        if self.released:
            route.continue_()
        else:
            self.append(route)


def hold(page: Any, address: str) -> Held:
    """Requests to an address wait in this list from now on, until they are released."""
    waiting = Held()
    page.route(f"**{address}*", waiting.add)
    return waiting


def wait_for(page: Any, waiting: Held, count: int = 1) -> None:
    for _ in range(200):
        if len(waiting) >= count:
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"{len(waiting)} requests came, not {count}")


def release(page: Any, waiting: Held) -> None:
    waiting.released = True
    for each in waiting:
        each.continue_()
    page.wait_for_timeout(200)


def answer(page: Any, address: str, **answered: Any) -> None:
    """What the next request to an address gets instead of the server's answer."""
    left = [answered]

    def once(route: Any) -> None:
        if left:
            route.fulfill(**left.pop())
        else:
            route.fallback()

    page.route(f"**{address}*", once)


def refuse(page: Any, address: str) -> None:
    answer(page, address, status=503, json={"error": "too much at once"})


def texts(page: Any, element: str) -> Callable[[], list[str]]:
    """Call it for all texts that an element has had since."""
    page.evaluate(
        """(selector) => {
            const element = document.querySelector(selector);
            window.texts = [];
            new MutationObserver(() => window.texts.push(element.textContent))
                .observe(element, {childList: true, characterData: true, subtree: true});
        }""",
        element,
    )
    return lambda: list(page.evaluate("() => window.texts"))


def radio(page: Any, name: str) -> None:
    page.get_by_role("radio", name=name, exact=True).check(force=True)
