"""The thread pool under the compiled kernels."""

import multiprocessing
import threading

import pytest

from kernels._numba import threads


@pytest.fixture(autouse=True)
def _four_threads(set_threads):
    set_threads(4)


def test_results_come_in_the_order_of_the_ranges():
    assert threads.run(lambda a, b, c: (a, b, c), [(i, i + 1) for i in range(9)], "x") == [
        (i, i + 1, "x") for i in range(9)
    ]


def test_every_range_is_run_even_with_more_ranges_than_threads():
    seen = set()
    threads.run(lambda i: seen.add((i, threading.get_ident())), [(i,) for i in range(50)])
    assert {i for i, _ in seen} == set(range(50))


def test_an_exception_of_any_range_is_raised_after_the_others_ended():
    done = []

    def kernel(i: int) -> None:
        if i == 3:
            raise RuntimeError("range 3")
        done.append(i)

    with pytest.raises(RuntimeError, match="range 3"):
        threads.run(kernel, [(i,) for i in range(4)])
    assert set(done) <= {0, 1, 2}


def test_what_a_call_runs_is_left_to_its_own_thread():
    """Or threads that all wait for one another's calls would wait for ever."""

    def outer(_: int) -> tuple[int, int, list[int]]:
        inner = threads.run(lambda _: threading.get_ident(), [(i,) for i in range(3)])
        return threads.number(), threading.get_ident(), inner

    for number, own, inner in threads.run(outer, [(i,) for i in range(20)]):
        assert (number, inner) == (1, [own] * 3)
    assert threads.number() == 4


def test_no_ranges_is_no_work():
    assert threads.run(lambda: 1, []) == []


@pytest.mark.parametrize(("count", "pieces"), [(0, 3), (1, 3), (7, 3), (9, 3), (5, 1)])
def test_split_covers_the_range_in_nearly_equal_pieces(count, pieces):
    ranges = threads.split(count, pieces)
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(count))
    sizes = [stop - start for start, stop in ranges]
    assert max(sizes) - min(sizes) <= 1
    assert len(ranges) <= pieces


def _square_in_child(queue):
    queue.put(threads.run(lambda i: i * i, [(i,) for i in range(4)]))


def test_a_forked_process_gets_threads_of_its_own():
    threads.run(lambda i: i, [(i,) for i in range(4)])  # the parent's pool exists
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_square_in_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=900) == [0, 1, 4, 9]
    finally:
        child.join(timeout=900)
        assert child.exitcode == 0
