"""One list of work for all processes of a run: each takes the next position that nobody has taken.

    shared = SharedWork(group, len(items))
    for position in shared.claims(): ...; shared.tell("what became of it")
    shared.end()                          # in all but the first process, which hears the others:
    for told in shared.heard(): ...

So a slow process holds nobody up. Nothing is kept on the disk: whoever starts again has to see what
is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch.distributed as dist

from deeplab.distributed import LONGEST, Processes

LOOK = 0.05  # seconds between two looks at what others have told


class SharedWork:
    """Positions 0 to count - 1, each for one process, and what the others tell the first.

    group: the processes, all of which make this object; of one alone there is nothing to share.
    """

    def __init__(self, group: Processes, count: int) -> None:
        self._rank, self._world, self._store = group.rank, group.world, group.store
        self._count = count
        self._told = 0
        self._stopped = False
        # A group of its own: a process that is gone is noticed by whoever waits for its end.
        self._ends = dist.new_group(backend="gloo", timeout=LONGEST) if self._store else None

    def claims(self) -> Iterator[int]:
        """The positions that are for this process, each taken when it is asked for.

        Whoever takes one works on it, so that behind a `stop` too none is missing before the last.
        """
        taken = 0
        while not self._stopped:
            taken = taken + 1 if self._store is None else self._store.add("taken", 1)
            if taken > self._count:
                return
            yield taken - 1

    def stop(self) -> None:
        """Leave what nobody has taken yet, in all processes."""
        self._stopped = True
        if self._store is not None:
            self._store.add("taken", self._count)

    def tell(self, message: str) -> None:
        """Say something to the first process."""
        assert self._store is not None
        self._store.set(self._name(self._rank, self._told), message)
        self._told += 1

    def end(self) -> None:
        """Say that nothing more comes, and wait for others than the first; RuntimeError where one
        is gone."""
        assert self._store is not None
        self._store.add("taken", 0)  # is answered, so that all that was told before has arrived
        dist.barrier(self._ends)

    def heard(self) -> Iterator[str]:
        """What the others tell, until all have ended; RuntimeError where one is gone."""
        if self._store is None:
            return
        numbers = [0] * self._world
        ended = dist.barrier(self._ends, async_op=True)
        while True:
            complete = ended.is_completed()
            for rank in range(1, self._world):
                while self._store.check([name := self._name(rank, numbers[rank])]):
                    yield self._store.get(name).decode()
                    self._store.delete_key(name)
                    numbers[rank] += 1
            if complete:
                ended.wait()  # raises what has gone wrong
                return
            time.sleep(LOOK)

    @staticmethod
    def _name(rank: int, number: int) -> str:
        return f"told by {rank}/{number}"
