"""Fifty requests at once, good and bad ones: each is answered, and the memory comes back."""

import gc
import threading
import tracemalloc
from pathlib import Path

import pytest
from running_app import SETTINGS, Answer, Client, halves, npz, png, running, softmax

from deeplab.app.server import Server

CLASSES = [{"name": "left", "colour": [200, 0, 0]}, {"name": "right", "colour": [0, 0, 200]}]
IMAGE, MARKS = halves(120, 160)
PICTURE, RESULT = png(IMAGE), npz(p=softmax(120, 160, 12))
EXPECTED = (400, 403, 404, 410, 400, 200, 400, 200, 200, 200)


def ask(client: Client, kind: int) -> Answer:
    """One of ten things that a page, or something worse, asks."""
    if kind == 0:
        return client.post("/api/open?name=broken.png", PICTURE[:500])
    if kind == 1:
        return client.ask("POST", "/api/open", PICTURE, {"Origin": "http://evil.example"})
    if kind == 2:
        return client.ask("GET", "/../../etc/passwd")
    if kind == 3:
        return client.post("/api/refine", b"{")
    client.open(IMAGE)
    if kind == 4:
        return client.post("/api/result?name=r.npz", npz(p=softmax(20, 30, 3)))
    if kind == 5:
        client.post("/api/result?name=r.npz", RESULT)
        return client.post("/api/refine", SETTINGS | {"steps": True})
    if kind == 6:
        return client.post("/api/refine", SETTINGS)  # without a stroke
    client.post("/api/marks", MARKS.tobytes())
    if kind == 7:
        return client.post("/api/download?file=everything.zip", SETTINGS | {"classes": CLASSES})
    return client.post("/api/refine", SETTINGS | {"preview": kind == 8})


def fifty(page: Server, port: int) -> list[int]:
    """The statuses of fifty requests at once, whose visits are over then."""
    clients, answers = [Client(port) for _ in range(50)], [0] * 50

    def answer(number: int) -> None:
        answers[number] = ask(clients[number], number % 10).status

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for client in clients:
        page.visits.end(client.token)
    gc.collect()
    return answers


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc here")
def test_fifty_at_once_are_all_answered_and_leave_nothing() -> None:
    page = Server(max_megapixels=1.0)
    with running(page) as port:
        fifty(page, port)  # what is loaded and kept once
        before = resident()
        tracemalloc.start()
        try:
            answers = fifty(page, port)
            allocated, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert answers == [*EXPECTED] * 5
        assert resident() < 1.1 * before
        # The process is large beside what fifty requests bring: that is counted apart.
        brought = 45 * len(PICTURE) + 15 * MARKS.size + 5 * len(RESULT)
        assert allocated < brought / 10
        assert (len(page.visits), page._being_read) == (0, 0)
