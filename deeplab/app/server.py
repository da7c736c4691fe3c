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
that what takes too long is refused before it starts (`refining`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    Refined,
    Wish,
    reduction,
    refined,
    steps,
)
from deeplab.app.visits import GoneError, SupersededError, Visit, Visits
from deeplab.data import outputs
from deeplab.data.annotations import GT_PROB
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.predict import Predictor

T = TypeVar("T")

SCRIPTS = ("app", "canvas", "classes", "numbers", "painting", "server", "strokes")
FILES = {  # of the folder static, by address
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.css": ("app.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in SCRIPTS},
}
UPLOAD = 64_000_000  # bytes of a file
TEXT = 100_000  # bytes of a JSON text
AT_ONCE = 256_000_000  # bytes of all requests that are being read
READING, COMPUTING = 30.0, 90.0  # seconds that a request may take to come, and to be answered
TOKEN = "x-visit"


class TooLargeError(Exception):
    """A request of more bytes than are read."""


class BusyError(Exception):
    """More is asked for at once than is done at once."""


class Server:
    """What the addresses share.

    Args:
        photograph: what the page opens first; None: an example.
        network: segments photographs on request; None: the page does not offer it.
        classes: names and colours of the network's; None only where there is no network.
        max_megapixels: photographs of more pixels (10^6) are refused.
    """

    def __init__(
        self,
        photograph: inputs.Photograph | None = None,
        network: Predictor | None = None,
        classes: outputs.NamedPalette | None = None,
        max_megapixels: float | None = None,
    ) -> None:
        self.photograph = photograph
        self.network = network
        self.classes = classes
        self.max_megapixels = max_megapixels
        self.visits = Visits()
        self._computing = ThreadPoolExecutor(1, "deeplab-app-crf")
        self._opening = ThreadPoolExecutor(1, "deeplab-app-files")  # meanwhile, one at a time too
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
        """Load what the first request would wait for."""
        marks = np.array([[0, 255, 255, 1]] * 4, np.uint8)
        problem = Problem(np.zeros((4, 4, 3), np.uint8), marks)
        self._computing.submit(refined, problem, Wish.of({}))

    def close(self) -> None:
        """Begin nothing more; what is being computed is left to end."""
        self._computing.shutdown(wait=False, cancel_futures=True)
        self._opening.shutdown(wait=False, cancel_futures=True)

    async def _about(self, _: Request) -> Response:
        own = [] if self.photograph is None else [self.photograph.name]
        examples = [
            {"name": name, "title": each.title} for name, each in photographs.EXAMPLES.items()
        ]
        settings = photographs.SETTINGS.as_dict()
        return JSONResponse(
            {
                "given": own,
                "examples": examples,
                "network": self.network is not None,
                "upload": UPLOAD,
                "start": {name: settings[name] for name in NUMBERS} | {"gt_prob": GT_PROB},
            }
        )

    async def _open(self, request: Request) -> Response:
        """?example=NAME, ?given (the photograph of the command line), or ?name=FILE with a body."""
        asked = request.query_params
        if "given" in asked and self.photograph is not None:
            photograph = self.photograph
        elif "example" in asked:
            photograph = await self._file(inputs.open_example, asked["example"])
        else:
            content = await self._body(request, UPLOAD)
            photograph = await self._file(
                inputs.open_photograph, asked.get("name", ""), self.max_megapixels, content
            )
        self.visits.end(request.headers.get(TOKEN, ""))
        token, visit = self.visits.begin(photograph)
        picture = await self._file(outputs.picture_png, photograph.image)
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

    async def _result(self, request: Request) -> Response:
        """?name=FILE with a body: probabilities, or a label map, whose labels become scribbles."""
        visit = self._visit(request)
        content = await self._body(request, UPLOAD)
        name = request.query_params.get("name", "")
        found = await self._file(inputs.open_result, name, content, visit.problem.size)
        return self._with_result(visit, found)

    async def _segment(self, request: Request) -> Response:
        visit, network, classes = self._visit(request), self.network, self.classes
        if network is None or classes is None:
            raise InputError("weights must be given to segment: deeplab app --weights FILE")
        predicted = await self._compute(network, visit.problem.image)
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
        content = await self._body(request, height * width)
        if len(content) != height * width:
            raise InputError(
                f"scribbles must be {height * width} bytes, one a pixel, not {len(content)}"
            )
        marks = np.frombuffer(content, np.uint8).reshape(height, width)
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
            found = await self._compute(_refined, problem, wish, k, each)
        height, width = found[-1].labels.shape
        frames = [one.labels.tobytes() for one in found]
        if heat is not None:
            frames += [one.heat(heat).tobytes() for one in found]
        about = {
            "width": width,
            "height": height,
            "frames": len(found),
            "whole": k == 1,
            "heat": heat is not None,
        }
        return _packed(about, *frames)

    async def _download(self, request: Request) -> Response:
        """?file=KIND; JSON: the numbers of `Wish`, and the classes."""
        visit = self._visit(request)
        kind = request.query_params.get("file", "")
        given = await self._json(request)
        wish, classes = Wish.of(given), downloads.classes_of(given.get("classes"))
        async with visit.turn(replaceable=False):
            content = await self._compute(downloads.download, kind, visit.problem, wish, classes)
        return Response(content, media_type=downloads.KINDS[kind])

    def _visit(self, request: Request) -> Visit:
        return self.visits.get(request.headers.get(TOKEN, ""))

    async def _json(self, request: Request) -> Mapping[str, Any]:
        content = await self._body(request, TEXT)
        try:
            given = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the request must be JSON ({error})") from error
        if not isinstance(given, dict):
            raise InputError("the request must be a JSON object")
        return given

    async def _body(self, request: Request, most: int) -> bytes:
        """The body of a request; TooLargeError, BusyError or TimeoutError where it is not read."""
        content = bytearray()
        try:
            async with asyncio.timeout(READING):
                async for chunk in request.stream():
                    if len(content) + len(chunk) > most:
                        raise TooLargeError(f"at most {most} bytes are read")
                    if self._being_read + len(chunk) > AT_ONCE:
                        raise BusyError
                    self._being_read += len(chunk)
                    content += chunk
        finally:
            self._being_read -= len(content)
        return bytes(content)

    async def _compute(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call it in the thread that computes; TimeoutError if its turn does not come."""
        return await _in_turn(self._computing, function, *arguments)

    async def _file(self, function: Callable[..., T], *arguments: Any) -> T:
        """The same in the thread that reads and writes files."""
        return await _in_turn(self._opening, function, *arguments)

    def _answering(
        self, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """The same, with what a person can mend as an answer."""

        async def answered(request: Request) -> Response:
            try:
                return await answer(request)
            except InputError as error:
                return _error(400, str(error))
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


def _refined(problem: Problem, wish: Wish, k: int, each: bool) -> list[Refined]:
    small, fitting = problem.reduced(k), wish.reduced(k) if k > 1 else wish
    return list(steps(small, fitting)) if each else [refined(small, fitting)]


async def _in_turn(thread: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(COMPUTING):
        return await loop.run_in_executor(thread, function, *arguments)


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
