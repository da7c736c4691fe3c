"""Labelled pictures through the methods of the CRF: what is counted, and what the gate holds."""

from typing import Any

import compare_accuracy
import labelled_pictures
import pytest
import torch
from compare_accuracy import ALONE, EXACT, LATTICE, METHODS, PEER
from frame import Settings
from labelled_pictures import CAMVID, IGNORE, Pictures


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return labelled_pictures.of_scenes(1, side=97)


def outputs_of(prepared: Any) -> dict[str, Any]:
    return {name: call() for name, call in prepared.candidates.items()}


def test_each_method_is_held_against_all_pairs_and_against_the_labels(pictures: Pictures) -> None:
    prepared = compare_accuracy.methods_of(pictures, factor=5)
    outputs = outputs_of(prepared)
    assert list(outputs) == [*METHODS, ALONE]
    assert set(prepared.ours) == set(METHODS)
    assert all(check.passed for check in prepared.gate(outputs)), prepared.gate(outputs)
    assert not all(
        check.passed for check in prepared.gate({**outputs, LATTICE: outputs[ALONE] * -1})
    )
    assert prepared.quality is not None
    found = prepared.quality(outputs)
    assert (found[EXACT].same_label, found[EXACT].mean_error) == (1.0, 0.0)
    alone = found[ALONE]
    assert alone.same_label is not None
    assert alone.same_label < 1
    perfect = torch.nn.functional.one_hot(pictures.smaller(5).labels, 11).permute(0, 3, 1, 2)
    truth = prepared.quality({EXACT: outputs[EXACT], "truth": perfect.float()})["truth"]
    assert (truth.miou, truth.trimap_miou) == (1.0, 1.0)


def test_whole_pictures_stand_beside_the_peer(pictures: Pictures) -> None:
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is not installed")
    prepared = compare_accuracy.lattice_of(pictures)
    outputs = outputs_of(prepared)
    assert list(outputs) == [LATTICE, PEER, ALONE]
    assert all(check.passed for check in prepared.gate(outputs)), prepared.gate(outputs)
    wrong = {**outputs, LATTICE: outputs[ALONE]}
    assert not all(check.passed for check in prepared.gate(wrong))
    assert prepared.quality is not None
    found = prepared.quality(outputs)
    assert found[LATTICE].same_label is None, "all pairs are not known"
    assert found[LATTICE].miou == pytest.approx(found[PEER].miou, abs=1e-2)


def test_without_the_peer_the_lattice_is_alone_and_the_reader_told(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_accuracy, "installed", lambda name: None)
    prepared = compare_accuracy.lattice_of(pictures)
    assert list(prepared.candidates) == [LATTICE, ALONE]
    assert "pydensecrf2 is not installed" in prepared.notes[0]


def test_scores_made_of_labels_are_right_inside_and_blurred_at_borders() -> None:
    labels = torch.zeros(1, 64, 96, dtype=torch.int64)
    labels[:, :, 45:] = 3
    labels[:, :3] = IGNORE
    scores = labelled_pictures.blurred_scores(labels, 5)
    assert scores.shape == (1, 5, 64, 96)
    assert torch.equal(scores, labelled_pictures.blurred_scores(labels, 5))
    right = scores.argmax(1) == labels
    inside = torch.cat([right[:, 16:, :32], right[:, 16:, 64:]], 2).double().mean()
    assert right[:, 16:, 40:50].double().mean() < inside


def test_street_scenes_are_a_case_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(compare_accuracy, "CAMVID", CAMVID if there else CAMVID / "nowhere")
        names = {
            case.name.split(",")[0] for case in compare_accuracy.cases(Settings("cpu", 1, True))
        }
        assert names == ({"scenes", "CamVid"} if there and CAMVID.is_dir() else {"scenes"})


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not beside the checkout")
def test_street_scenes_have_labels_of_their_size_and_void_that_does_not_count() -> None:
    pictures = labelled_pictures.of_camvid(2)
    assert pictures.images.shape == (2, 3, 360, 480)
    assert pictures.logits.shape == (2, 11, 360, 480)
    assert set(pictures.labels.unique().tolist()) <= {*range(11), IGNORE}
    small = pictures.smaller(6)
    assert small.images.shape == (2, 3, 60, 80)
    assert set(small.labels.unique().tolist()) <= set(pictures.labels.unique().tolist())
    assert small.settings.bilateral is not None
    assert small.settings.bilateral.sigma_xy == pytest.approx(49 / 6)
