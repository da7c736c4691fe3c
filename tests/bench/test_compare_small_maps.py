"""Small maps, alone and in a batch: the gate, and that it can fail."""

import compare_small_maps
import numpy as np
from crf_problem import PEER, CRFProblem
from frame import Settings


def test_a_batch_beside_a_loop_over_the_peer_passes_the_gate_and_other_labels_do_not() -> None:
    problem = CRFProblem(13, 11, 3, 20.0, 60.0, 2, batch=2)
    prepared = compare_small_maps.prepare_batch(problem)
    outputs = {name: call() for name, call in prepared.candidates.items()}
    assert all(check.passed for check in compare_small_maps.gate(outputs))
    outputs[PEER] = np.flip(outputs[compare_small_maps.OURS].flatten(2).numpy(), 1)
    assert not all(check.passed for check in compare_small_maps.gate(outputs))


def test_every_size_has_bars_for_few_and_many_labels_alone_and_in_a_batch() -> None:
    quick, whole = (
        compare_small_maps.cases(Settings("cpu", 1, quick=quick)) for quick in (True, False)
    )
    assert [case.bar for case in quick] == [1.5, 3.0, 2.5, 3.0]
    assert [case.name for case in whole if "21 labels" in case.name] == [
        "41x41, 21 labels, one core",
        "41x41, 21 labels, batch 8, one core",
        "81x81, 21 labels, one core",
        "81x81, 21 labels, batch 8, one core",
    ]
