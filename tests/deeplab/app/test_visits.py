"""Many pages at once: what is kept for each, whose turn it is, and how much is read meanwhile."""

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from running_app import SETTINGS, Answer, Client, halves, npz, png, running, softmax

from deeplab.app import refining, server, visits
from deeplab.app.inputs import Photograph
from deeplab.app.refining import Problem, Refined, Wish
from deeplab.app.server import Server, Worker
from deeplab.app.visits import SupersededError, Visit, Visits
from deeplab.data import outputs
from deeplab.predict import Prediction

CLASSES = [{"name": "left", "colour": [200, 0, 0]}, {"name": "right", "colour": [0, 0, 200]}]


@pytest.fixture
def page() -> Iterator[tuple[Server, int]]:
    """A server of its own that can segment, and its port."""

    def network(image: np.ndarray) -> Prediction:
        return Prediction.of(softmax(*image.shape[:2], 3))

    palette = outputs.NamedPalette(outputs.voc_palette(), ["a", "b", "c"])
    server = Server(network=network, classes=palette)  # type: ignore[arg-type]
    with running(server) as port:
        yield server, port


@pytest.fixture
def asking() -> Iterator[Callable[..., Future[Answer]]]:
    """Asks in a thread."""
    with ThreadPoolExecutor(8) as threads:
        yield threads.submit


@pytest.fixture
def busy() -> Iterator[Callable[[Worker], threading.Event]]:
    """Keeps the thread of a worker busy with something else, until the event is set."""
    events = []

    def keep(worker: Worker) -> threading.Event:
        events.append(threading.Event())
        worker.thread.submit(events[-1].wait, 30)
        return events[-1]

    yield keep
    for event in events:
        event.set()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def painted(port: int, size: tuple[int, int] = (40, 60)) -> Client:
    """A client with strokes on a picture."""
    image, marks = halves(*size)
    client = Client(port)
    client.open(image)
    client.post("/api/marks", marks.tobytes())
    return client


def test_visits_are_bounded_in_number_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    photograph = Photograph("a.png", *halves())
    all_visits = Visits()
    tokens = [all_visits.begin(photograph)[0] for _ in range(visits.VISITS)]
    all_visits.get(tokens[0])  # used again: the next is the oldest
    newest, _ = all_visits.begin(photograph)
    assert len(all_visits) == visits.VISITS
    with pytest.raises(visits.GoneError):
        all_visits.get(tokens[1])
    for token in (newest, *tokens[2:], tokens[0]):
        visit = all_visits.get(token)
    assert visit.bytes == 4 * 2400
    visit.problem = replace(visit.problem, probabilities=softmax(40, 60, 5))
    assert visit.bytes == 4 * 2400 + 4 * 5 * 2400
    monkeypatch.setattr(visits, "BYTES", visit.bytes + 4 * 2400)
    all_visits.trim()
    assert len(all_visits) == 2
    all_visits.get(tokens[-1])
    all_visits.get(tokens[0])
    monkeypatch.setattr(visits, "BYTES", 1)
    all_visits.trim()
    assert len(all_visits) == 1  # the newest stays
    all_visits.get(tokens[0])


def test_pages_together_keep_no_more_than_the_bound(
    page: tuple[Server, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (painted(page[1]) for _ in range(3))
    monkeypatch.setattr(visits, "BYTES", 4 * 4 * 2400)
    first.refine()  # so that the second was used longest ago
    painted(page[1])  # which fits
    assert len(page[0].visits) == 4
    painted(page[1])
    assert second.post("/api/refine", SETTINGS).status == 410
    assert (first.refine()[0]["frames"], third.refine()[0]["frames"]) == (1, 1)
    assert first.post("/api/result?name=r.npz", npz(p=softmax(40, 60, 3))).status == 200
    assert third.post("/api/refine", SETTINGS).status == 410
    assert len(page[0].visits) == 1
    assert first.refine()[0]["frames"] == 1


def test_visits_that_a_network_segments_are_trimmed_too(
    page: tuple[Server, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = painted(page[1]), painted(page[1])
    monkeypatch.setattr(visits, "BYTES", 4 * 4 * 2400)
    assert first.post("/api/segment").status == 200
    assert second.post("/api/refine", SETTINGS).status == 410


def test_of_waiting_computations_the_newest_wins() -> None:
    async def outcomes() -> list[str]:
        visit, order = Visit(Problem(*halves())), list[str]()

        async def compute(name: str, replaceable: bool = True) -> None:
            try:
                async with visit.turn(replaceable):
                    order.append(f"{name} begins")
                    await asyncio.sleep(0.01)
                    order.append(f"{name} ends")
            except SupersededError:
                order.append(f"not {name}")

        asks = [compute("first"), compute("second"), compute("kept", False), compute("third")]
        await asyncio.gather(*asks)
        return order

    begun = ("first begins", "first ends", "not second", "kept begins", "kept ends")
    assert asyncio.run(outcomes()) == [*begun, "third begins", "third ends"]


def test_a_page_computes_one_thing_at_a_time_and_the_newest_of_what_waits(
    page: tuple[Server, int],
    asking: Callable[..., Future[Answer]],
    busy: Callable[[Worker], threading.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting: list[str] = []
    do = Worker.do

    async def noted(self: Worker, function: Callable[..., object], *arguments: object) -> object:
        waiting.append(function.__name__)
        return await do(self, function, *arguments)

    one, other = painted(page[1]), painted(page[1])
    visit = page[0].visits.get(one.token)
    monkeypatch.setattr(Worker, "do", noted)
    free = busy(page[0].computing)
    answers = [asking(one.post, "/api/refine", SETTINGS)]
    until(lambda: visit.newest == 1)
    answers.append(asking(one.post, "/api/refine", SETTINGS))
    until(lambda: visit.newest == 2)
    download = {**SETTINGS, "classes": CLASSES}
    answers.append(asking(one.post, "/api/download?file=mask.png", download))
    answers.append(asking(one.post, "/api/segment"))
    answers.append(asking(one.post, "/api/refine", SETTINGS))
    until(lambda: visit.newest == 3 and len(visit.lock._waiters or ()) == 4)
    assert waiting == ["_frames"]  # of all that the page wants
    answers.append(asking(other.post, "/api/refine", SETTINGS))
    until(lambda: waiting == ["_frames", "_frames"])  # another page's turn is its own
    free.set()
    assert [answer.result(30).status for answer in answers] == [200, 409, 200, 200, 200, 200]


def test_who_waits_too_long_is_told(
    page: tuple[Server, int],
    asking: Callable[..., Future[Answer]],
    busy: Callable[[Worker], threading.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = painted(page[1]), painted(page[1])
    free = busy(page[0].computing)
    first = asking(one.post, "/api/refine", SETTINGS)
    until(page[0].computing._turn.locked)
    monkeypatch.setattr(server, "WAITING", 0.05)
    answer = other.post("/api/refine", SETTINGS)
    assert answer.status == 503
    assert "too much is asked for at once" in answer.error
    assert other.open(halves()[0])  # which does not wait for what is being computed
    free.set()
    assert first.result(30).status == 200  # what has begun is waited for


def test_what_waits_to_be_opened_counts_as_being_read(
    page: tuple[Server, int],
    asking: Callable[..., Future[Answer]],
    busy: Callable[[Worker], threading.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = png(halves()[0])
    monkeypatch.setattr(server, "AT_ONCE", 2 * len(content) + 100)
    client = painted(page[1])
    free = busy(page[0].opening)
    opened = [asking(Client(page[1]).post, "/api/open?name=a.png", content)]
    until(lambda: page[0]._being_read == len(content))
    opened.append(asking(client.post, "/api/result?name=a.png", content))
    until(lambda: page[0]._being_read == 2 * len(content))
    refused = Client(page[1]).post("/api/open?name=a.png", content)
    assert (refused.status, page[0]._being_read) == (503, 2 * len(content))
    assert client.post("/api/refine", SETTINGS).status == 503  # its JSON is longer than 100 bytes
    free.set()
    assert [answer.result(30).status for answer in opened] == [200, 400]
    assert page[0]._being_read == 0
    assert Client(page[1]).post("/api/open?name=a.png", content).status == 200


def test_what_gives_up_waiting_gives_its_place_back(
    page: tuple[Server, int],
    asking: Callable[..., Future[Answer]],
    busy: Callable[[Worker], threading.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = png(halves()[0])
    free = busy(page[0].opening)
    first = asking(Client(page[1]).post, "/api/open?name=a.png", content)
    until(page[0].opening._turn.locked)
    monkeypatch.setattr(server, "WAITING", 0.05)
    assert Client(page[1]).post("/api/open?name=a.png", content).status == 503
    assert page[0]._being_read == len(content)  # the first
    assert page[0].opening.thread._work_queue.qsize() == 1  # where nothing else is held
    free.set()
    assert first.result(30).status == 200
    assert page[0]._being_read == 0


def test_more_than_can_be_read_at_once_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "AT_ONCE", 1000)
    assert client.post("/api/open?name=a.png", bytes(1001)).status == 503
    monkeypatch.undo()
    assert client.post("/api/open?name=a.png", png(halves()[0])).status == 200


def test_steps_keep_no_marginals(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[np.ndarray]] = []
    refined = refining.refined

    def noted(problem: Problem, wish: Wish) -> Refined:
        assert sum(each() is not None for each in kept) <= 1  # that of the step before
        found = refined(problem, wish)
        kept.append(weakref.ref(found.marginals))
        return found

    monkeypatch.setattr(refining, "refined", noted)
    labels, heats = server._frames(Problem(*halves()), Wish.of(SETTINGS), 1, True, 1)
    assert (len(labels), len(heats), len(kept)) == (4, 4, 4)
