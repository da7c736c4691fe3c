"""Work that several processes take from one list."""

import pytest
import torch
from several_processes import run_two

from deeplab.distributed import Processes
from deeplab.shared_work import SharedWork

PROGRAM = """
import sys, time
from deeplab.distributed import processes
from deeplab.shared_work import SharedWork

with processes("cpu") as group:
    shared = SharedWork(group, 20)
    for position in shared.claims():
        time.sleep(0.2 if group.rank == int(sys.argv[1]) else 0.001)
        if group.first:
            print(position)
        else:
            shared.tell(f"other {position}")
        if position == int(sys.argv[2]):
            shared.stop()
    if group.first:
        print(*shared.heard(), sep="\\n")
    else:
        shared.end()
"""


@pytest.mark.parametrize("slow", [0, 1])
def test_each_position_is_for_one_process_and_a_slow_one_takes_few(slow):
    lines = run_two("-c", PROGRAM, str(slow), "-1")[0].split("\n")
    others = [line.removeprefix("other ") for line in lines if line.startswith("other ")]
    own = [line for line in lines if line.isdecimal()]
    assert sorted(map(int, own + others)) == list(range(20))
    assert others == sorted(others, key=int)
    few = (own, others)[slow]
    assert len(few) < 10


def test_once_stopped_nobody_takes_any_more():
    lines = run_two("-c", PROGRAM, "0", "3")[0].split()
    assert 4 <= len([line for line in lines if line.isdecimal()]) <= 6


def test_one_process_alone_takes_all_until_it_stops():
    shared = SharedWork(Processes(0, 1, torch.device("cpu")), 5)
    taken = []
    for position in shared.claims():
        taken.append(position)
        if position == 3:
            shared.stop()
    assert taken == [0, 1, 2, 3]
    assert not list(shared.heard())
