"""What cannot fit is refused before it is allocated, with the size that it would need."""

from pathlib import Path

import pytest
import torch

from kernels import cgroups, memory

CPU = torch.device("cpu")


def test_more_than_is_free_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 3_000_000_000)
    memory.require(3_000_000_000, CPU, "it", "take less")
    with pytest.raises(MemoryError, match=r"it needs at least 3.1 GB, and 3.0 GB .*cpu; take less"):
        memory.require(3_100_000_000, CPU, "it", "take less")


def test_where_the_system_does_not_tell_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: None)
    memory.require(10**18, CPU, "it", "take less")


def test_free_memory_is_told_on_linux() -> None:
    free = memory.available(CPU)
    assert (free is not None) == Path("/proc/meminfo").exists()
    assert free is None or free > 0
    assert memory.available(torch.device("meta")) is None


def tree(folder: Path, memberships: str, mounts: str, files: dict[str, str]) -> Path:
    """What the system tells of a process, and the files of its groups below the mount point."""
    (folder / "self").mkdir()
    (folder / "self" / "cgroup").write_text(memberships)
    point = str(folder / "fs")
    (folder / "self" / "mountinfo").write_text(mounts.format(point=point))
    for name, text in files.items():
        path = folder / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "self"


PROC = "22 27 0:20 / /proc rw,nosuid shared:5 - proc proc rw\n"
V1 = PROC + "40 32 0:35 {root} {{point}} ro - cgroup cgroup rw,memory\n"
V1 += "41 32 0:36 / {{point}}/cpu ro - cgroup cgroup rw,cpu,cpuacct\n"
V2 = PROC + "29 23 0:26 {root} {{point}} rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
NO_LIMIT_V1 = "9223372036854771712\n"


def limited_v2(folder: str, limit: str, current: int, inactive: int) -> dict[str, str]:
    stat = f"anon 1\nfile {inactive + 7}\ninactive_file {inactive}\nactive_file 7\n"
    files = {"max": f"{limit}\n", "current": f"{current}\n", "stat": stat}
    return {f"{folder}memory.{name}": text for name, text in files.items()}


def limited_v1(folder: str, limit: str, usage: int, inactive: int) -> dict[str, str]:
    stat = f"inactive_file 3\ntotal_inactive_anon 9\ntotal_inactive_file {inactive}\n"
    files = {"limit_in_bytes": f"{limit}\n", "usage_in_bytes": f"{usage}\n", "stat": stat}
    return {f"{folder}memory.{name}": text for name, text in files.items()}


GROUPS = {  # memberships, mounts, files, and what is left with 5000 bytes free on the machine
    "docker, version 2": ("0::/\n", V2.format(root="/"), limited_v2("", "1000", 700, 200), 500),
    "docker, version 1, sees its own group alone": (
        "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n",
        V1.format(root="/docker/abc"),
        limited_v1("", "1000", 700, 200),
        500,
    ),
    "another group than the one that is seen": (
        "4:memory:/../other\n",
        V1.format(root="/"),
        limited_v1("", "1000", 700, 0),
        300,
    ),
    "Slurm, the limit of the job above the step": (
        "0::/job_1/step_0/task_0\n",
        V2.format(root="/"),
        limited_v2("job_1/", "3000", 1000, 0)
        | limited_v2("job_1/step_0/", "max", 900, 0)
        | limited_v2("job_1/step_0/task_0/", "4000", 900, 100),
        2000,
    ),
    "Kubernetes, version 1, the pod is fuller than the container": (
        "4:memory:/kubepods/pod1/c1\n",
        V1.format(root="/"),
        limited_v1("", NO_LIMIT_V1, 10**6, 0)
        | limited_v1("kubepods/", NO_LIMIT_V1, 10**5, 0)
        | limited_v1("kubepods/pod1/", "2000", 1900, 50)
        | limited_v1("kubepods/pod1/c1/", "1800", 100, 0),
        150,
    ),
    "more than the machine has": (
        "0::/\n",
        V2.format(root="/"),
        limited_v2("", "6000", 500, 0),
        5000,
    ),
    "full": ("0::/\n", V2.format(root="/"), limited_v2("", "1000", 1100, 20), 0),
    "no limit": ("0::/a\n", V2.format(root="/"), limited_v2("a/", "max", 1, 0), 5000),
    "no files": ("0::/a\n", V2.format(root="/"), {}, 5000),
    "no statistics": (
        "0::/\n",
        V2.format(root="/"),
        {"memory.max": "1000", "memory.current": "400"},
        600,
    ),
    "no group of memory": ("5:cpu,cpuacct:/a\n", V1.format(root="/"), {}, 5000),
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_control_group_leaves_what_its_limit_and_those_above_it_do(tmp_path, name: str) -> None:
    memberships, mounts, files, expected = GROUPS[name]
    process = tree(tmp_path, memberships, mounts, files)
    assert cgroups.left(5000, process) == expected
    limited = expected if expected < 5000 else None
    assert cgroups.left(None, process) == (5500 if name.startswith("more") else limited)


def test_a_system_without_control_groups_leaves_what_is_free(tmp_path) -> None:
    assert cgroups.left(5000, tmp_path) == 5000
    assert cgroups.left(None, tmp_path) is None


def test_what_a_control_group_leaves_is_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "left", lambda free: 700)
    assert memory.available(CPU) == 700
    with pytest.raises(MemoryError, match=r"0\.0 GB are free"):
        memory.require(800, CPU, "it")
