"""The server of the page: its addresses, what they read and answer.

    GET  /, /app.css, /icon.svg, /*.js   the page: these files and no others
    GET  /api/about                      examples, limits, the start of each slider
    POST /api/open                       a photograph; begins a visit, whose token later ones carry
    POST /api/result, /api/segment       a network's result instead of scribbles
    POST /api/marks                      the scribbles, uint8 `[H, W]`
    POST /api/refine                     what the CRF makes of it
    POST /api/download                   a file of `downloads.KINDS`

Answers with arrays are a JSON text and the arrays behind it (`_packed`); everything that a person
can mend is answered by {"error": "..."} and a status of 4xx.

One thread computes, for all visits in turn, and another reads files. They cannot be interrupted, so
that what takes too long is refused before it starts (`refining`), and who waits can give up only
before its turn.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deeplab import photographs
from deeplab.app import downloads, inputs
from deeplab.app.guard import NAMES, Guard
from deeplab.app.refining import (
    NUMBERS,
    Problem,
    Wish,
    reduction,
    refined,
    steps,
)
from deeplab.app.visits import GoneError, SupersededError, Visit, Visits
from deeplab.crf_settings import CRFSettings
from deeplab.data import outputs
from deeplab.data.annotations import GT_PROB, UNSURE_INDEX
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.predict import Predictor

T = TypeVar("T")

SCRIPTS = (
    "app",
    "canvas",
    "classes",
    "numbers",
    "painting",
    "server",
    "strokes",
    "telling",
    "theme",
)
FILES = {  # of the folder static, by address
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.css": ("app.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in SCRIPTS},
}
UPLOAD = 64_000_000  # bytes of a file
TEXT = 100_000  # bytes of a JSON text
AT_ONCE = 256_000_000  # bytes of all requests that are being read or wait to be opened
READING, WAITING = 30.0, 90.0  # seconds that a request may take to come, and to get its turn
TOKEN = "x-visit"
LABELS = (2, 3, 6)  # for 2, 3 to 5 and 6 to 9 labels the CRF is compiled apart


class TooLargeError(Exception):
    """A request of more bytes than are read."""


class BusyError(Exception):
    """More is asked for at once than is done at once."""


class Worker:
    """A thread that does one thing at a time, in the order in which it is asked."""

    def __init__(self, name: str) -> None:
        self.thread = ThreadPoolExecutor(1, name)
        self._turn = asyncio.Lock()  # what waits is held here, not in the thread's queue

    async def do(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call it in the thread; TimeoutError if its turn does not come."""
        async with asyncio.timeout(WAITING):
            await self._turn.acquire()
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.thread, function, *arguments)
        finally:
            self._turn.release()

    def close(self) -> None:
        """Begin nothing more; what is being done is left to end."""
        self.thread.shutdown(wait=False, cancel_futures=True)


class Server:
    """What the addresses share.

    Args:
        photograph: what the page opens first; None: an example.
        network: segments photographs on request; None: the page does not offer it.
        classes: names and colours of the network's; None only where there is no network.
        max_megapixels: photographs and label maps of more pixels (10^6) are refused.
        local: only this machine can reach the server, as far as one knows; the page says so.
    """

    def __init__(
        self,
        photograph: inputs.Photograph | None = None,
        network: Predictor | None = None,
        classes: outputs.NamedPalette | None = None,
        max_megapixels: float | None = None,
        local: bool = True,
    ) -> None:
        self.photograph = photograph
        self.network = network
        self.classes = classes
        self.max_megapixels = max_megapixels
        self.local = local
        self.visits = Visits()
        self.computing = Worker("deeplab-app-crf")
        self.opening = Worker("deeplab-app-files")  # meanwhile, one at a time too
        self._being_read = 0

    def application(self, names: Sequence[str] = NAMES) -> Guard:
        """The ASGI application, to be asked for under these names and addresses in numbers."""
        posts = {
            "/api/open": self._open,
            "/api/result": self._result,
            "/api/segment": self._segment,
            "/api/marks": self._marks,
            "/api/refine": self._refine,
            "/api/download": self._download,
        }
        pages = Starlette(
            routes=[
                *(Route(path, _page, methods=["GET"]) for path in FILES),
                Route("/api/about", self._about, methods=["GET"]),
                *(
                    Route(path, self._answering(post), methods=["POST"])
                    for path, post in posts.items()
                ),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _failure},
        )
        return Guard(pages, names)

    def warm_up(self) -> None:
        """Compile, in the background, what the first requests would wait for.

        Each of `LABELS` is a computation of its own, which is put behind what has been asked for
        meanwhile: no request waits for more than one.
        """
        self.computing.thread.submit(self._warm_up, LABELS)

    def _warm_up(self, counts: Sequence[int]) -> None:
        height, width = 200, 300  # a preview's; the whole runs the same code
        marks = np.full((height, width), UNSURE_INDEX, np.uint8)
        marks[0, : counts[0]] = np.arange(counts[0])
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        refined(Problem(image, marks), Wish.of({}))
        if counts[1:]:
            with suppress(RuntimeError):  # the server is closed, and begins nothing more
                self.computing.thread.submit(self._warm_up, counts[1:])

    def close(self) -> None:
        """Begin nothing more; what is being computed is left to end."""
        self.computing.close()
        self.opening.close()

    async def _about(self, _: Request) -> Response:
        own = [] if self.photograph is None else [self.photograph.name]
        examples = [
            {"name": name, "title": each.title} for name, each in photographs.EXAMPLES.items()
        ]
        start = {"scribbles": photographs.SETTINGS, "network": CRFSettings()}
        return JSONResponse(
            {
                "given": own,
                "examples": examples,
                "network": self.network is not None,
                "local": self.local,
                "upload": UPLOAD,
                "start": {kind: _sliders(settings) for kind, settings in start.items()},
            }
        )

    async def _open(self, request: Request) -> Response:
        """?example=NAME, ?given (the photograph of the command line), or ?name=FILE with a body."""
        photograph = await self._photograph(request)
        picture = await self.opening.do(outputs.picture_png, photograph.image)
        self.visits.end(request.headers.get(TOKEN, ""))
        token, visit = self.visits.begin(photograph)
        height, width = visit.problem.size
        classes = zip(photograph.classes, photograph.colours, strict=True)
        about = {
            "visit": token,
            "name": photograph.name,
            "width": width,
            "height": height,
            "classes": [{"name": name, "colour": colour} for name, colour in classes],
            "notes": photograph.notes,
        }
        return _packed(about, picture, photograph.marks.tobytes())

    async def _photograph(self, request: Request) -> inputs.Photograph:
        asked = request.query_params
        if "given" in asked and self.photograph is not None:
            return self.photograph
        if "example" in asked:
            return await self.opening.do(inputs.open_example, asked["example"])
        name = asked.get("name", "")
        async with self._body(request, UPLOAD) as content:
            return await self.opening.do(inputs.open_photograph, name, self.max_megapixels, content)

    async def _result(self, request: Request) -> Response:
        """?name=FILE with a body: probabilities, or a label map, whose labels become scribbles."""
        visit, name = self._visit(request), request.query_params.get("name", "")
        async with self._body(request, UPLOAD) as content:
            found = await self.opening.do(
                inputs.open_result, name, content, visit.problem.size, self.max_megapixels
            )
        return self._with_result(visit, found)

    async def _segment(self, request: Request) -> Response:
        visit, network, classes = self._visit(request), self.network, self.classes
        if network is None or classes is None:
            raise InputError("weights must be given to segment: deeplab app --weights FILE")
        async with visit.turn(replaceable=False):
            predicted = await self.computing.do(network, visit.problem.image)
        count = len(predicted.probabilities)
        names = [classes.name(index) for index in range(count)]
        colours = classes.palette[:count].tolist()
        return self._with_result(
            visit, inputs.Result(predicted.probabilities, None, names, colours)
        )

    def _with_result(self, visit: Visit, found: inputs.Result) -> Response:
        if found.marks is not None:
            visit.problem = replace(visit.problem, marks=found.marks, probabilities=None)
        else:
            visit.problem = replace(visit.problem, probabilities=found.probabilities)
        self.visits.trim()
        names = found.names or [f"class {index}" for index in range(found.count)]
        colours = found.colours or outputs.voc_palette()[: found.count].tolist()
        about = {
            "probabilities": found.marks is None,
            "classes": [
                {"name": name, "colour": colour}
                for name, colour in zip(names, colours, strict=True)
            ],
            "notes": found.notes,
        }
        return _packed(about, b"" if found.marks is None else found.marks.tobytes())

    async def _marks(self, request: Request) -> Response:
        visit = self._visit(request)
        height, width = visit.problem.size
        async with self._body(request, height * width) as content:
            marks = np.frombuffer(content, np.uint8)
        if marks.size != height * width:
            raise InputError(
                f"scribbles must be {height * width} bytes, one a pixel, not {marks.size}"
            )
        marks = marks.reshape(height, width)
        visit.problem = replace(visit.problem, marks=marks, probabilities=None)
        return JSONResponse({})

    async def _refine(self, request: Request) -> Response:
        """Labels, and the marginals of one class on request, at the end or after each iteration.

        JSON: the numbers of `Wish`, "preview" or "steps" to be true, "heat" to be a class.
        """
        visit = self._visit(request)
        given = await self._json(request)
        wish, heat = Wish.of(given), given.get("heat")
        preview, each = given.get("preview") is True, given.get("steps") is True
        if heat is not None and type(heat) is not int:
            raise InputError(f"heat must be the number of a class, not {heat!r:.80}")
        async with visit.turn(replaceable=True):
            problem = visit.problem
            k = reduction(problem, wish, preview or each)
            labels, heats = await self.computing.do(_frames, problem, wish, k, each, heat)
        height, width = labels[0].shape
        about = {
            "width": width,
            "height": height,
            "frames": len(labels),
            "whole": k == 1,
            "heat": heat is not None,
        }
        return _packed(about, *(frame.tobytes() for frame in (*labels, *heats)))

    async def _download(self, request: Request) -> Response:
        """?file=KIND; JSON: the numbers of `Wish`, and the classes."""
        visit = self._visit(request)
        kind = request.query_params.get("file", "")
        given = await self._json(request)
        wish, classes = Wish.of(given), downloads.classes_of(given.get("classes"))
        async with visit.turn(replaceable=False):
            content = await self.computing.do(
                downloads.download, kind, visit.problem, wish, classes
            )
        return Response(content, media_type=downloads.KINDS[kind])

    def _visit(self, request: Request) -> Visit:
        return self.visits.get(request.headers.get(TOKEN, ""))

    async def _json(self, request: Request) -> Mapping[str, Any]:
        async with self._body(request, TEXT) as content:
            try:
                given = json.loads(content)
            except ValueError as error:
                raise InputError(f"the request must be JSON ({error})") from error
        if not isinstance(given, dict):
            raise InputError("the request must be a JSON object")
        return given

    @asynccontextmanager
    async def _body(self, request: Request, most: int) -> AsyncIterator[bytes]:
        """The body of a request, which counts as being read until the block is left.

        TooLargeError, BusyError or TimeoutError where it is not read.
        """
        content: bytes | bytearray = bytearray()
        try:
            async with asyncio.timeout(READING):
                async for chunk in request.stream():
                    if len(content) + len(chunk) > most:
                        raise TooLargeError(f"at most {most} bytes are read")
                    if self._being_read + len(chunk) > AT_ONCE:
                        raise BusyError
                    self._being_read += len(chunk)
                    content += chunk
            content = bytes(content)
            yield content
        finally:
            self._being_read -= len(content)

    def _answering(
        self, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """The same, with what a person can mend as an answer."""

        async def answered(request: Request) -> Response:
            try:
                return await answer(request)
            except InputError as error:
                return _error(400, str(error))
            except RecursionError:
                return _error(400, "the request must be JSON of fewer brackets in each other")
            except SupersededError:
                return _error(409, "a newer request of this page came before it")
            except GoneError:
                return _error(410, "this photograph is no longer open; open it again")
            except TooLargeError as error:
                return _error(413, f"this is too large: {error}")
            except MemoryError as error:
                return _error(503, f"not enough memory: {error}")
            except (BusyError, TimeoutError):
                return _error(503, "too much is asked for at once; try again in a moment")
            except ClientDisconnect:
                return _error(400, "the request was broken off")

        return answered


def _sliders(settings: CRFSettings) -> dict[str, Any]:
    """The numbers that the page has sliders for."""
    values = settings.as_dict()
    return {name: values[name] for name in NUMBERS} | {"gt_prob": GT_PROB}


def _frames(
    problem: Problem, wish: Wish, k: int, each: bool, heat: int | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Labels, and the heat of a class if one is given: at the end, or after each iteration.

    The marginals, many times as large, are not kept.
    """
    small, fitting = problem.reduced(k), wish.reduced(k) if k > 1 else wish
    labels, heats = [], []
    for found in steps(small, fitting) if each else [refined(small, fitting)]:
        labels.append(found.labels)
        if heat is not None:
            heats.append(found.heat(heat))
    return labels, heats


async def _page(request: Request) -> Response:
    name, kind = FILES[request.url.path]
    content = resources.files("deeplab.app").joinpath("static", name).read_bytes()
    return Response(content, media_type=kind)


def _packed(about: Mapping[str, Any], *arrays: bytes) -> Response:
    """A JSON text with the lengths of what follows it, its own length (4 bytes) in front."""
    text = json.dumps({**about, "lengths": [len(array) for array in arrays]}).encode()
    head = len(text).to_bytes(4, "little")
    return Response(b"".join((head, text, *arrays)), media_type="application/octet-stream")


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)


async def _http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _error(status, "there is no such page" if status == 404 else "this is not done here")


async def _failure(_: Request, __: Exception) -> Response:
    return _error(500, "the server failed at this; its terminal says more")
