"""Fifty requests at once, good and bad ones: each is answered, and the memory comes back."""

import gc
import threading
from pathlib import Path

import pytest
from running_app import SETTINGS, Answer, Client, halves, npz, png, running, softmax

from deeplab.app.server import Server

CLASSES = [{"name": "left", "colour": [200, 0, 0]}, {"name": "right", "colour": [0, 0, 200]}]


def visit(port: int, number: int) -> Answer:
    """One of ten things that a page, or something worse, asks."""
    image, marks = halves(120, 160)
    client = Client(port)
    kind = number % 10
    if kind == 0:
        return client.post("/api/open?name=broken.png", png(image)[:500])
    if kind == 1:
        return client.ask("POST", "/api/open", png(image), {"Origin": "http://evil.example"})
    if kind == 2:
        return client.ask("GET", "/../../etc/passwd")
    if kind == 3:
        return client.post("/api/refine", b"{")
    client.open(image)
    if kind == 4:
        return client.post("/api/result?name=r.npz", npz(p=softmax(20, 30, 3)))
    if kind == 5:
        client.post("/api/result?name=r.npz", npz(p=softmax(120, 160, 12)))
        return client.post("/api/refine", SETTINGS)
    if kind == 6:
        return client.post("/api/refine", SETTINGS)  # without a stroke
    client.post("/api/marks", marks.tobytes())
    if kind == 7:
        return client.post("/api/download?file=everything.zip", SETTINGS | {"classes": CLASSES})
    return client.post("/api/refine", SETTINGS | {"preview": kind == 8})


EXPECTED = (400, 403, 404, 410, 400, 200, 400, 200, 200, 200)


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc here")
def test_fifty_at_once_are_all_answered_and_leave_nothing() -> None:
    def round_of(port: int) -> list[int]:
        answers = [0] * 50

        def ask(number: int) -> None:
            answers[number] = visit(port, number).status

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return answers

    page = Server(max_megapixels=1.0)
    with running(page) as port:
        round_of(port)  # what is loaded and kept once
        before = resident()
        answers = round_of(port)
        assert answers == [EXPECTED[number % 10] for number in range(50)]
        assert resident() < 1.1 * before
