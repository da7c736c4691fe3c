"""Pictures to labels: the pipelines agree, and a gate that they would not pass is seen."""

from pathlib import Path
from types import ModuleType

import compare_model
import model_pipelines
import numpy as np
import plain_deeplab
import published_pipeline
import pytest
import torch
from compare_model import OURS, PLAIN, PUBLISHED, TORCHVISION
from frame import Settings
from model_pipelines import Task

import deeplab.model

TASK = Task("resnet50", side=41, batch=2)


@pytest.fixture(autouse=True)
def _without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes longer than all of this."""
    found = compare_model.importable
    monkeypatch.setattr(
        compare_model, "importable", lambda name: None if name == "onnxruntime" else found(name)
    )


def test_a_plain_network_with_our_weights_gives_our_scores() -> None:
    model = model_pipelines.our_network("resnet50")
    network = model_pipelines.plain("resnet50")
    images = torch.from_numpy(TASK.images).permute(0, 3, 1, 2)[..., :33]
    assert torch.equal(plain_deeplab.preprocess(images), model.preprocess(images))
    with torch.no_grad():
        ours = model(model.preprocess(images), upsample=False)
        plain = network(plain_deeplab.preprocess(images))
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    assert 1 < float(plain.std()) < 10, "as spread as a trained network's"


def test_weights_of_another_network_are_refused() -> None:
    small = deeplab.model.deeplab_v2_small(num_classes=21)
    with pytest.raises(ValueError, match="must be DeepLab v2 on the same ResNet"):
        plain_deeplab.same_weights(small, 21, plain_deeplab.BLOCKS["resnet50"])


@pytest.mark.parametrize("part", ["whole", "network_alone", "upsampling_alone", "crf_alone"])
def test_pipelines_agree_in_whole_and_in_steps_and_a_wrong_one_is_seen(part: str) -> None:
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is not installed")
    prepared = getattr(compare_model, part)(TASK)
    assert list(prepared.candidates) == [OURS, PLAIN]
    outputs = {name: call() for name, call in prepared.candidates.items()}
    assert all(check.passed for check in prepared.gate(outputs)), prepared.gate(outputs)
    assert prepared.images == TASK.batch
    wrong = {**outputs, OURS: outputs[OURS] + 1}
    assert not all(check.passed for check in prepared.gate(wrong))


def test_without_peers_ours_is_judged_by_the_plain_network_and_the_reader_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (compare_model, model_pipelines):
        monkeypatch.setattr(module, "installed", lambda name: None)
    prepared = compare_model.whole(TASK)
    assert list(prepared.candidates) == [OURS]
    notes = " ".join(prepared.notes)
    assert "pydensecrf2 is not installed" in notes
    assert "onnxruntime not installed (pip install '.[export]'): the exported network" in notes
    found = prepared.candidates[OURS]()
    assert all(check.passed for check in prepared.gate({OURS: found}))
    assert not all(check.passed for check in prepared.gate({OURS: np.zeros_like(found)}))


@pytest.mark.parametrize("installed", [True, False])
def test_v3_agrees_with_torchvision_or_else_with_float64(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def importable(name: str) -> ModuleType | None:
        return pytest.importorskip(name) if installed else None

    monkeypatch.setattr(compare_model, "importable", importable)
    prepared = compare_model.v3(Task("resnet50", 41, 1))
    outputs = {name: call() for name, call in prepared.candidates.items()}
    assert list(outputs) == ([OURS, TORCHVISION] if installed else [OURS])
    assert (TORCHVISION in " ".join(prepared.notes)) is not installed
    assert all(check.passed for check in prepared.gate(outputs)), prepared.gate(outputs)
    wrong = {**outputs, OURS: (outputs[OURS] + 1) % 21}
    assert not all(check.passed for check in prepared.gate(wrong))


@pytest.mark.parametrize("quick", [True, False])
def test_the_case_names_tell_the_cases_apart(quick: bool) -> None:
    names = [case.name for case in compare_model.cases(Settings("cpu", 1, quick))]
    assert len(set(names)) == len(names)


def test_the_published_program_is_a_case_where_it_is_and_its_labels_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is not installed")
    monkeypatch.setattr(compare_model, "CHECKOUT", tmp_path / "none")
    full = Settings("cpu", 1, quick=False)
    assert not any(PUBLISHED in case.name for case in compare_model.cases(full))
    monkeypatch.setattr(compare_model, "CHECKOUT", tmp_path)
    (case,) = (case for case in compare_model.cases(full) if PUBLISHED in case.name)
    assert case.bar is not None

    labels = np.zeros((8, 8), np.uint8)
    found = published_pipeline.Pipeline(lambda image: None, lambda image: labels)
    for name in ("our_network", "our_pipeline", "their_network", "their_pipeline"):
        monkeypatch.setattr(published_pipeline, name, lambda *given: found)
    prepared = case.prepare()
    assert list(prepared.candidates) == [OURS, PUBLISHED]
    outputs = {name: call() for name, call in prepared.candidates.items()}
    assert all(check.passed for check in prepared.gate(outputs))
    assert not all(check.passed for check in prepared.gate({**outputs, OURS: labels + 1}))
