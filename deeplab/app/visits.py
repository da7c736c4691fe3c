"""What is kept for each open page, within a bound, and whose turn it is to compute.

A page that is loaded is a visit of its own, two tabs are two. Only what cannot be computed again is
kept: the photograph, the scribbles, a network's probabilities. Where the bound is reached the visit
that was used longest ago goes; its page opens the photograph again when it next asks.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from deeplab.app.inputs import Photograph
from deeplab.app.refining import Problem

VISITS = 64
BYTES = 600_000_000  # of all visits together


class GoneError(Exception):
    """There is no such visit, or not any more."""


class SupersededError(Exception):
    """A newer request of the same page came before this one was begun."""


@dataclass(eq=False)
class Visit:
    """A page with a photograph; `problem` is what the CRF is given."""

    problem: Problem
    newest: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def bytes(self) -> int:
        """How much memory it holds."""
        arrays = (self.problem.image, self.problem.marks, self.problem.probabilities)
        return sum(array.nbytes for array in arrays if array is not None)

    @asynccontextmanager
    async def turn(self, replaceable: bool) -> AsyncIterator[None]:
        """One computation at a time.

        Of those that wait and are replaceable only the newest gets its turn; the others end in
        SupersededError.
        """
        if replaceable:
            self.newest += 1
        mine = self.newest
        async with self.lock:
            if replaceable and self.newest != mine:
                raise SupersededError
            yield


class Visits:
    """All of them, by their secret token."""

    def __init__(self) -> None:
        self._visits: OrderedDict[str, Visit] = OrderedDict()

    def __len__(self) -> int:
        return len(self._visits)

    def begin(self, photograph: Photograph) -> tuple[str, Visit]:
        """A new visit, and its token."""
        token = secrets.token_urlsafe(16)
        visit = Visit(Problem(photograph.image, photograph.marks))
        self._visits[token] = visit
        self.trim()
        return token, visit

    def get(self, token: str) -> Visit:
        """The visit of a token, which is the last used from now on. Raises GoneError."""
        if token not in self._visits:
            raise GoneError
        self._visits.move_to_end(token)
        return self._visits[token]

    def end(self, token: str) -> None:
        """Forget it."""
        self._visits.pop(token, None)

    def trim(self) -> None:
        """Forget the oldest until the rest is within the bounds; the newest stays."""
        total = sum(visit.bytes for visit in self._visits.values())
        while len(self._visits) > 1 and (len(self._visits) > VISITS or total > BYTES):
            _, oldest = self._visits.popitem(last=False)
            total -= oldest.bytes
