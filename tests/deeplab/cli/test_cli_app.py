"""`deeplab app`: what it refuses, and how it begins and ends."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from commands import assert_refused, done, run

pytest.importorskip("starlette", reason="starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")


def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = f"--port {port}: cannot listen there .*choose another port, or --port 0"
        assert_refused(tmp_path, message, "app", "--port", port)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", 70000], "--port 70000 must be 0 to 65535"),
        (["--host", "256.1.1.1"], "--host 256.1.1.1 --port 8765: cannot listen there"),
        (["--host", "."], r"--host \. must be an address or a name of this machine"),
        (["--host", "x" * 5000], "--host x{80} must be an address or a name of this machine"),
        (["--host", ""], "--host must be an address or a name of this machine"),
        (["nothing.jpg"], "nothing.jpg: no such file"),
        (["--weights", "nothing.pth", "--port", 0], "nothing.pth"),
    ],
)
def test_what_it_cannot_begin_with_is_refused(
    tmp_path: Path, arguments: list[object], message: str
) -> None:
    assert_refused(tmp_path, message, "app", *arguments)


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_its_packages_it_says_how_to_get_them(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = run("app")
    assert result.exit_code == 2
    assert "pip install 'deeplab-triton[app]'" in result.stderr


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("LocalHost", True), ("0.0.0.0", False)]
)
def test_the_page_is_told_whether_others_can_reach_it(
    host: str, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import uvicorn

    from deeplab.app import guard, server

    pages: list[server.Server] = []

    class Noted(server.Server):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            pages.append(self)

    def serve(inner: uvicorn.Server, sockets: object) -> None:
        assert inner.config.app.names == {*guard.NAMES, host.lower()}  # type: ignore[union-attr]

    monkeypatch.setattr(server, "Server", Noted)
    monkeypatch.setattr(uvicorn.Server, "run", serve)
    done("app", "--host", host, "--port", 0)
    assert [page.local for page in pages] == [local]


def test_it_serves_until_it_is_interrupted() -> None:
    command = [sys.executable, "-m", "deeplab", "app", "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = line.split()[1]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=30) as page:
            assert b"<title>deeplab app" in page.read()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert (rest, errors) == ("", "")
        assert process.returncode == 0
