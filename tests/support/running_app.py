"""The page's server for tests: running in a thread, and asked by plain HTTP."""

import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from deeplab.app.guard import NAMES
from deeplab.app.server import Server

SETTINGS = {
    "iterations": 3,
    "gaussian_weight": 3,
    "gaussian_sigma_xy": 3,
    "bilateral_weight": 5,
    "bilateral_sigma_xy": 20,
    "bilateral_sigma_rgb": 8,
    "gt_prob": 0.7,
}


@dataclass
class Answer:
    """What the server said."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> str:
        assert self.status >= 400, self.status
        return str(self.json["error"])

    def unpacked(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """The JSON text and the arrays behind it, uint8."""
        assert self.status == 200, self.content[:300]
        length = int.from_bytes(self.content[:4], "little")
        about = json.loads(self.content[4 : 4 + length])
        parts, start = [], 4 + length
        for each in about["lengths"]:
            parts.append(np.frombuffer(self.content[start : start + each], np.uint8))
            start += each
        assert start == len(self.content)
        return about, parts


@dataclass
class Client:
    """Asks a server; `token` is that of the visit that `open` began last."""

    port: int
    token: str = ""

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"x-visit": self.token, **(headers or {})})
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())
        finally:
            connection.close()

    def post(self, path: str, body: bytes | Mapping[str, Any] = b"") -> Answer:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, content)

    def open(self, image: np.ndarray) -> dict[str, Any]:
        about, _ = self.post("/api/open?name=photo.png", png(image)).unpacked()
        self.token = about["visit"]
        return about

    def refine(self, **more: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
        return self.post("/api/refine", {**SETTINGS, **more}).unpacked()


@contextmanager
def running(server: Server, names: Sequence[str] = NAMES) -> Iterator[int]:
    """The server on a free port, which this gives; it may be asked for under these names."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        config = uvicorn.Config(
            server.application(names),
            log_level="warning",
            access_log=False,
            ws="none",
            lifespan="off",
        )
        inner = uvicorn.Server(config)
        thread = threading.Thread(target=inner.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            inner.should_exit = True
            thread.join(20)
            server.close()
        assert not thread.is_alive()


def png(pixels: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """An array as a PNG file."""
    content, picture = io.BytesIO(), Image.fromarray(pixels)
    if palette is not None:
        picture.putpalette(palette.astype(np.uint8).tobytes())
    picture.save(content, "PNG")
    return content.getvalue()


def halves(height: int = 40, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture of two colours, and a stroke on each: uint8 `[H, W, 3]` and `[H, W]`."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 30, (height, width, 3)).astype(np.uint8)
    image[:, width // 2 :] += 150
    marks = np.full((height, width), 255, np.uint8)
    marks[height // 4 : height // 2, width // 8] = 0
    marks[height // 4 : height // 2, -width // 8] = 1
    return image, marks


def softmax(height: int, width: int, classes: int) -> np.ndarray:
    """Probabilities float32 `[C, H, W]` that change slowly."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (7 + k) + k) + np.cos(y / (5 + k)) for k in range(classes)]
    values = np.exp(waves)
    return (values / values.sum(0)).astype(np.float32)


def npz(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()
