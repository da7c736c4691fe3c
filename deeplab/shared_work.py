"""One list of work for all processes of a run: each takes the next position that nobody has taken.

    shared = SharedWork(group, len(items))
    for position in shared.claims(): ...; shared.tell("what became of it")
    shared.end()
    for told in shared.heard(): ...       # in the first process, of the others

So a slow process holds nobody up. Nothing is kept on the disk: whoever starts again has to see what
is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from deeplab.distributed import Processes

POLL = 0.05  # seconds between two looks at what others have told
PATIENCE = 10.0  # seconds for others to end, after this process was asked to stop


class SharedWork:
    """Positions 0 to count - 1, each for one process, and what the others tell the first.

    group: the processes; of one alone there is nothing to share.
    """

    def __init__(self, group: Processes, count: int) -> None:
        self._group = group
        self._count = count
        self._store = group.store
        self._told = 0
        self._stopped = False

    def claims(self) -> Iterator[int]:
        """The positions that are for this process, each taken when it is asked for."""
        if self._store is None:
            for position in range(self._count):
                if self._stopped:
                    return
                yield position
            return
        while (position := self._store.add("taken", 1) - 1) < self._count:
            yield position

    def stop(self) -> None:
        """Leave what nobody has taken yet, in all processes."""
        self._stopped = True
        if self._store is not None:
            self._store.add("taken", self._count)

    def tell(self, message: str) -> None:
        """Say something that is not empty to the first process."""
        assert self._store is not None
        self._store.set(f"told by {self._group.rank}/{self._told}", message)
        self._told += 1

    def end(self) -> None:
        """Say that nothing more comes from this process."""
        self.tell("")

    def heard(self, stopped: Callable[[], bool]) -> Iterator[str]:
        """What the others tell, until all have ended, or some time after this one is `stopped`."""
        next_of = dict.fromkeys(range(1, self._group.world), 0)
        deadline = float("inf")
        while next_of and self._store is not None:
            for rank, number in list(next_of.items()):
                name = f"told by {rank}/{number}"
                if not self._store.check([name]):
                    continue
                message = self._store.get(name).decode()
                self._store.delete_key(name)
                next_of[rank] += 1
                if message:
                    yield message
                else:
                    del next_of[rank]
            if stopped():
                deadline = min(deadline, time.monotonic() + PATIENCE)
            if time.monotonic() > deadline:
                return
            time.sleep(POLL)
