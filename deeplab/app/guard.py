"""Who may ask the server, and what every answer forbids a browser to do.

A page of another site can make a visitor's browser send requests to this server, under a name that
is this machine's address today (DNS rebinding) or from its own address (cross-site requests). So
the Host that is asked for must be an address in numbers, localhost or this machine's name, none of
which another site can be reached by; and a request that says where it comes from must come from
here. What changes or computes anything must say so: a browser sends an Origin with each POST.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
NAMES = ("localhost", socket.gethostname().lower())


class Guard:
    """An ASGI application that lets through what comes from its own pages.

    names: under which the server may be asked for, beside addresses in numbers.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = NAMES) -> None:
        self.app = app
        self.names = frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)  # only its start and end: there are no websockets
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        if (why := self._refusal(scope)) is None:
            await self.app(scope, receive, guarded)
            return
        body = json.dumps({"error": why}).encode()
        headers = [(b"content-type", b"application/json")]
        await guarded({"type": "http.response.start", "status": 403, "headers": headers})
        await guarded({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Scope) -> str | None:
        """Why a request is refused; None where it is not."""
        given = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        headers = dict(given)
        host = headers.get("host", "")
        if not self._is_here(host):
            return (
                f"host {host:.80} must be an address in numbers or a name of this machine; open "
                "the address that deeplab app printed"
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return (
                f"origin {origin:.80} must be this page's own; requests of other sites are refused"
            )
        asked_by = headers.get("sec-fetch-site", "none")
        if scope["method"] != "GET" and asked_by not in ("same-origin", "none"):
            return f"a request of a {asked_by:.20} page: other sites are refused"
        return None

    def _is_here(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self.names
        return True
