"""`deeplab app`: a local page to paint scribbles on, while the dense CRF follows."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeplab.cli.shared.network import load_network
from deeplab.cli.shared.options import WeightsOptions, option
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.app.inputs import Photograph
    from deeplab.app.server import Server

PORT = 8765
CONNECTIONS = 100  # at once; more are answered that the server is busy


def app(
    photo: Annotated[
        Path | None,
        typer.Argument(metavar="[PHOTO]", help="The photograph to begin with; else an example."),
    ] = None,
    weights_file: Annotated[
        Path | None,
        option(
            "FILE|NAME",
            "Weights that the page can segment photographs with, as of `deeplab segment`.",
            "--weights",
            shown="none",
        ),
    ] = None,
    host: Annotated[
        str,
        option(
            "ADDRESS",
            "Where to listen. 0.0.0.0 lets other machines in: there is no password, so only on a "
            "network that you trust.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, option("N", "Which port; 0 for any free one.")] = PORT,
    max_megapixels: Annotated[
        float, option("N", "Refuse larger photographs (10^6 pixels), before they are decoded.")
    ] = 50.0,
) -> None:
    """A page on which you paint scribbles and see the dense CRF follow.

    Open the address that is printed in a browser. Photographs, scribbles and results stay on this
    machine, unless --host lets others in; the page asks nothing of any other. Ctrl-C ends it.

    On the page: photographs of your own, scribbles or a network's softmax (.npz, .npy) or label
    map, a slider for each number of the CRF, and downloads of mask, overlay, settings and the
    Python that makes the same mask. Photographs above one megapixel are reduced to it.

    Needs starlette and uvicorn: pip install 'deeplab-triton[app]'.

    **Examples**

    ```text
    deeplab app
    deeplab app photo.jpg --port 0
    deeplab app photo.jpg --weights my_training.safetensors
    ```
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise InputError(
            f"deeplab app needs starlette and uvicorn: pip install 'deeplab-triton[app]' ({error})"
        ) from error
    from deeplab.app.guard import NAMES
    from deeplab.app.inputs import open_photograph

    opened = None if photo is None else open_photograph(str(photo), max_megapixels)
    with _listening(host, port) as sock:
        local = ipaddress.ip_address(sock.getsockname()[0]).is_loopback
        server = _server(opened, weights_file, max_megapixels, local)
        config = uvicorn.Config(
            server.application((*NAMES, host.lower())),
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="off",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"Open http://{shown}:{sock.getsockname()[1]} in a browser; Ctrl-C ends it.")
        server.warm_up()
        try:
            uvicorn.Server(config).run(sockets=[sock])
        except KeyboardInterrupt:  # how one ends it
            pass
        finally:
            server.close()


def _server(
    opened: Photograph | None, weights_file: Path | None, max_megapixels: float, local: bool
) -> Server:
    from deeplab.app.server import Server
    from deeplab.data import outputs
    from deeplab.predict import Predictor

    if weights_file is None:
        return Server(opened, max_megapixels=max_megapixels, local=local)
    network, metadata = load_network(WeightsOptions(weights_file))
    if network.multilabel:
        raise InputError(
            f"--weights {weights_file} must be of one class a pixel: a CRF gives a pixel one"
        )
    palette = outputs.full_palette(metadata.get("palette"))
    classes = outputs.NamedPalette(palette, metadata.get("class_names"))
    return Server(opened, Predictor(network.eval()), classes, max_megapixels, local)


def _listening(host: str, port: int) -> socket.socket:
    """A socket on which connections wait; InputError where there is none to be had."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port} must be 0 to 65535, 0 for any free one")
    if not host:  # which would be every address of this machine
        raise InputError("--host must be an address or a name of this machine, such as 127.0.0.1")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except UnicodeError as error:  # a label that is empty, or longer than 63 characters
        raise InputError(
            f"--host {host:.80} must be an address or a name of this machine, such as 127.0.0.1"
        ) from error
    except OSError as error:
        raise InputError(
            f"--host {host:.80} --port {port}: cannot listen there ({error.strerror or error}); "
            "choose another port, or --port 0 for any free one"
        ) from error
