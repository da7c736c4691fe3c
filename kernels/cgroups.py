"""What the control groups of this process leave of the memory: docker --memory, Kubernetes, Slurm.

A group may hold less than the machine, and Linux ends a process in it that takes more, whatever is
free outside:

    limit - (usage - inactive file cache)     of the group and of each above it, the least counts

since cache that nobody has used lately is dropped before a process is ended. The files and their
meaning: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the Linux kernel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

NO_LIMIT = 2**60  # bytes; version 1 says the largest multiple of a page where there is none


@dataclass(frozen=True)
class Version:
    """Of control groups: their files, and the line of memory.stat for the cache."""

    limit: str
    usage: str
    inactive: str


V1 = Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = Version("memory.max", "memory.current", "inactive_file")


def left(free: int | None = None, process: Path = Path("/proc/self")) -> int | None:
    """Bytes until the fullest of the groups is full, but no more than are free on the machine.

    free: those; None where the system does not tell. process: what it tells of the process.
    """
    for folder, version in _groups(process):
        try:  # "max" is no number
            limit = int((folder / version.limit).read_text())
            if limit >= NO_LIMIT:
                continue
            usage = int((folder / version.usage).read_text())
        except (OSError, ValueError):
            continue
        if free is None or limit - usage < free:  # else the cache, slow to read, decides nothing
            here = max(0, limit - max(0, usage - _inactive(folder, version)))
            free = here if free is None else min(free, here)
    return free


def _inactive(folder: Path, version: Version) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        return next(int(n) for name, n in map(str.split, lines) if name == version.inactive)
    except (OSError, StopIteration, ValueError):
        return 0


@cache  # a process keeps its groups, while their limits may change
def _groups(process: Path) -> tuple[tuple[Path, Version], ...]:
    try:
        memberships = (process / "cgroup").read_text().splitlines()
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:
        return ()
    return tuple(_folders(memberships, mounts))


def _folders(memberships: list[str], mounts: list[str]) -> Iterator[tuple[Path, Version]]:
    """Those of the groups that may limit memory: the process's own, and all above it."""
    own: dict[Version, PurePosixPath] = {}
    for line in memberships:  # number:controllers:path
        number, controllers, path = line.split(":", 2)
        if number == "0":
            own[V2] = PurePosixPath(path)
        elif "memory" in controllers.split(","):
            own[V1] = PurePosixPath(path)
    for line in mounts:  # id parent device root point options ... - type source options
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        filesystem, _, options = after.split(maxsplit=2)
        memory = filesystem == "cgroup" and "memory" in options.split(",")
        version = V2 if filesystem == "cgroup2" else V1 if memory else None
        if version is None or version not in own:
            continue
        # A container may see less of the tree than the path tells of, down to its own group alone.
        group = own[version]
        below = group.relative_to(root).parts if group.is_relative_to(root) else ()
        below = () if ".." in below else below
        for depth in range(len(below) + 1):
            yield Path(point, *below[:depth]), version
