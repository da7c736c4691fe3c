"""Training that can teach nothing says so: before it, after an epoch, at its end; never wrongly."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import assert_refused, done
from dataset_files import label_map
from picture_files import save
from several_processes import start_two
from tiny_training import SHORT, TINY, Signalling, run, tiny_pictures

from deeplab.data.datasets import SegmentationData, open_dataset
from deeplab.data.scenes import CLASSES
from deeplab.errors import InputError
from deeplab.model import deeplab_v2_small
from deeplab.training import TrainResult, labels
from deeplab.training.checkpoint import Files, read_state, write_state
from deeplab.weights import save_weights

TWO = {"class_names": ["back", "front"]}
FAST = replace(SHORT, steps=2, crop=9)
Pictures = list[tuple[np.ndarray, np.ndarray]]


def pictures(*values: tuple[int, ...]) -> Pictures:
    """Noise, each picture with labels of these values."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return [(image, np.resize(np.array(v, np.uint8), (12, 16))) for v in values]


def on_disk(root: Path, train: Pictures, val: Pictures, classes: str = "back\nfront\n") -> Path:
    for split, chosen in (("train", train), ("val", val)):
        (root / "images" / split).mkdir(parents=True)
        for number, (image, truth) in enumerate(chosen):
            save(root / "images" / split / f"{number}.png", image)
            label_map(root / "labels" / split / f"{number}.png", truth)
    (root / "classes.txt").write_text(classes)
    return root


def opened(root: Path) -> tuple[SegmentationData, SegmentationData]:
    return open_dataset("folder", root, "train"), open_dataset("folder", root, "val")


def trained(train: Any, val: Any = None, out: Path | None = None, **changes: Any) -> TrainResult:
    val = pictures((0, 1)) if val is None else val
    return run(replace(FAST, **changes), train, out, validation=val, **TWO)


GOOD = pictures((0, 1), (1, 0, 255))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 255), r"only back \(label 0\) and ignored pixels \(255\) occur, of 2 .*label = 255$"),
        ((255,), r"no pixel is labelled, all are ignored \(255\), of 2 .*if 255 is a class"),
        ((1,), r"only front \(label 1\) occurs, of 2 classes; check the label maps"),
    ],
)
def test_files_that_teach_nothing_are_refused_before_any_picture_is_read(
    tmp_path, monkeypatch, values, message
):
    train, val = opened(on_disk(tmp_path / "data", pictures(values, values), GOOD))
    monkeypatch.setattr(type(train), "image", None)
    out = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match=f"^training labels: {message}"):
        run(FAST, train, out, validation=val)
    assert not list(tmp_path.glob("w*"))


def test_a_validation_without_a_labelled_pixel_is_refused_before_the_first_step(tmp_path):
    train, val = opened(on_disk(tmp_path / "data", GOOD, pictures((255,))))
    with pytest.raises(InputError, match=r"^validation labels: no pixel is labelled, all"):
        run(FAST, train, validation=val)


def test_one_label_map_of_a_sound_set_is_read_and_none_of_a_run_that_goes_on(tmp_path, monkeypatch):
    many = pictures(*[(0, 1)] * 9)
    train, val = opened(on_disk(tmp_path / "data", many, many))
    read: list[int] = []
    genuine = type(train).labels
    monkeypatch.setattr(type(train), "labels", lambda self, i: read.append(i) or genuine(self, i))
    out = tmp_path / "w.safetensors"
    labels.check_labels(train, val, TWO["class_names"], (), pytest.fail)
    assert len(read) == 2
    run(replace(FAST, steps=1, batch_size=1), train, out, validation=many)
    del read[:]
    run(replace(FAST, steps=1, batch_size=1), train, out, validation=many, resume=True)
    assert read == []


def test_a_set_of_which_only_a_part_was_looked_at_is_not_refused_but_told(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "MOST_READ", 3)
    order = np.random.default_rng(0).permutation(5).tolist()
    values = [(0, 255)] * 5
    values[order[3]] = (0, 1)  # the only picture of its kind, beyond those looked at
    train, val = opened(on_disk(tmp_path / "data", pictures(*values), GOOD))
    said: list[str] = []
    labels.check_labels(train, val, TWO["class_names"], (), said.append)
    assert len(said) == 1
    assert said[0].startswith("Note: training labels (3 of 5 label maps looked at): only back (")
    (tmp_path / "data" / "labels" / "train" / f"{order[3]}.png").write_bytes(b"broken")
    monkeypatch.setattr(labels, "MOST_READ", 9)
    labels.check_labels(train, val, TWO["class_names"], (), said.append)
    assert "(4 of 5 label maps looked at)" in said[1]


@pytest.mark.parametrize("in_memory", [False, True])
def test_data_of_any_kind_that_teach_nothing_end_after_the_first_epoch(tmp_path, in_memory):
    out = tmp_path / "w.safetensors"
    data = Signalling(pictures(*[(0, 255)] * 4), -1, 0)
    with pytest.raises(InputError, match=r"^training labels: only back .* if 255 is a class"):
        trained(data, out=out, steps=50, in_memory=in_memory)
    assert data.calls == 4  # two steps of two
    assert not Files(out).state.exists()
    assert not out.exists()


def test_a_run_shorter_than_an_epoch_ends_with_the_error_and_keeps_its_files(tmp_path):
    out = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match=r"labels \(of 4 of 5 pictures\): no pixel is labelled"):
        trained(pictures(*[(255,)] * 5), out=out)
    assert read_state(Files(out).state)["step"] == 2


def test_a_second_class_in_one_picture_is_enough(capsys):
    result = trained(pictures((0, 255), (0, 255), (0, 1), (0,)))
    assert result.absent == {"training": (), "validation": ()}
    assert "Note" not in capsys.readouterr().err


def test_classes_that_never_occur_are_told_once_by_name_and_returned(capsys):
    config = replace(SHORT, steps=4, validate_every=1, crop=9)
    names = {"class_names": ["a", "b", "c", "d"]}
    result = run(config, pictures((0, 1), (3,)), validation=pictures((2, 0), (1,)), **names)
    assert result.absent == {"training": ("c",), "validation": ("d",)}
    assert capsys.readouterr().err.splitlines() == [
        "Note: training labels: no pixel of c (1 of 4 classes)",
        "Note: validation labels: no pixel of d (1 of 4 classes)",
    ]
    result = run(config, pictures(*[(0, 1)] * 20), validation=pictures((3,)), **names)
    assert result.absent["training"] == ("c", "d")
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("Note: validation labels: only d (label 3) occurs, of 4 classes")
    assert told[1:] == [
        "Note: training labels (of 8 of 20 pictures): no pixel of c, d (2 of 4 classes)"
    ]


def test_a_class_that_no_crop_shows_still_occurs(capsys):
    """What is counted is whole pictures: the accusation is never chance's."""
    image = pictures((0, 1))[0][0]
    wide = np.zeros((12, 1600), np.uint8)
    wide[:, -1] = 1
    data = [(np.resize(image, (12, 1600, 3)), wide)]
    assert trained(data, steps=1).absent["training"] == ()
    assert "Note" not in capsys.readouterr().err


def test_one_class_in_all_is_refused_with_the_cure(tmp_path):
    with pytest.raises(InputError, match=r"crack is the only class, .* such as background$"):
        run(FAST, Signalling(pictures((0,)), 1, signal.SIGKILL), class_names=["crack"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((0.0, 0.0, 1.0), "class_weights: only that of sky is above 0"),
        ((0.0, 2.0, 1.0), "back, front occur, of which only front has a weight above 0 in class_w"),
    ],
)
def test_weights_that_leave_one_class_are_refused(tmp_path, weights, message):
    names = ["back", "front", "sky"]
    config = replace(FAST, class_weights=weights)
    train, val = opened(on_disk(tmp_path, GOOD, GOOD, "\n".join(names)))
    with pytest.raises(InputError, match=message):
        run(config, train, validation=val)
    with pytest.raises(InputError, match=message):
        run(config, GOOD, validation=GOOD, class_names=names)


def test_weights_of_nothing_that_occurs_are_refused():
    config = replace(FAST, class_weights=(0.0, 0.0, 2.0, 1.0))
    with pytest.raises(InputError, match="a, b occur, of which all have the weight 0 in class_w"):
        run(config, GOOD, validation=GOOD, class_names=["a", "b", "c", "d"])


def test_labels_that_no_sample_shows_to_the_loss_are_refused():
    """The loss of stride 8 looks at every eighth pixel of a sample."""
    image, truth = np.zeros((9, 9, 3), np.uint8), np.full((9, 9), 255, np.uint8)
    truth[4, 4], truth[4, 3] = 0, 1
    config = replace(FAST, loss_stride=8, scales=(1.0, 1.0))
    with pytest.raises(InputError, match=r"no sample of 9 x 9 pixels .* counts in the loss; raise"):
        run(config, [(image, truth)], validation=GOOD, **TWO)


def test_a_run_in_two_parts_counts_as_one(tmp_path):
    """Counts go on with a resume; they are those of a run that was not stopped."""
    train = pictures(*[(0, 255)] * 11, (0, 1))
    whole, out = tmp_path / "whole.safetensors", tmp_path / "w.safetensors"
    trained(train, out=whole, steps=6)
    assert trained(Signalling(train, 6, signal.SIGTERM), out=out, steps=6).steps == 3
    config = replace(FAST, steps=6)
    result = run(config, train, out, validation=pictures((0, 1)), resume=True, **TWO)
    assert result.absent["training"] == ()
    states = [read_state(Files(path).state)["drawn"] for path in (whole, out)]
    assert torch.equal(states[0]["pixels"], states[1]["pixels"])
    assert states[0]["mass"] == states[1]["mass"]


TWO_PROCESSES = """
import sys
import numpy as np
import torch.distributed as dist
from deeplab.evaluation.metrics import ConfusionMatrix

sys.path.insert(0, sys.argv[1])
from test_labels import pictures, trained

dist.init_process_group("gloo")
counts = ConfusionMatrix(2)
counts.update(np.array([0, 255, 1, 255]), np.array([0, 0, 1, 1]))
counts.all_reduce()
print(counts.ignored, counts.matrix.tolist())
found = trained(pictures(*[(0, 255)] * 3, (1,)), steps=2, batch_size=2)
print(found.absent["training"])
try:
    trained(pictures(*[(0, 255)] * 4), steps=9, batch_size=2)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_two_processes_count_together_and_say_it_once():
    """The one picture with the second class is drawn by one of them."""
    children = start_two("-c", TWO_PROCESSES, str(Path(__file__).parent))
    told = [child.communicate()[0].splitlines() for child in children]
    assert [lines[0] for lines in told] == ["4 [[2, 0], [0, 2]]"] * 2
    assert [lines[1] for lines in told] == ["()", "()"]
    assert told[0][2].startswith("InputError training labels: only back (label 0) and ignored")
    assert told[1][2].startswith("OtherProcessEnded")


def test_a_state_that_counted_nothing_accuses_nothing(tmp_path):
    """One that was written before labels were counted: what it drew is not known."""
    train, out = pictures(*[(0, 1)] * 11, (0,)), tmp_path / "w.safetensors"
    trained(Signalling(train, 4, signal.SIGTERM), out=out, steps=6)
    state = read_state(Files(out).state)
    del state["drawn"]
    write_state(Files(out).state, state)
    config = replace(FAST, steps=6)
    one_class = pictures(*[(0,)] * 12)
    result = run(config, one_class, out, validation=GOOD, resume=True, **TWO)
    assert (result.steps, result.absent["training"]) == (6, ())


def test_generated_scenes_are_not_looked_at(monkeypatch):
    scenes = tiny_pictures()
    monkeypatch.setattr(labels, "_sample_labels", None)
    result = run(replace(TINY, steps=1), scenes)
    seen = {CLASSES[label] for _, truth in scenes for label in np.unique(truth)}
    assert set(result.absent["training"]) == set(CLASSES) - seen


def test_the_commands_tell_what_never_occurs_and_refuse_masks_of_black_and_white(tmp_path):
    root = on_disk(tmp_path / "data", GOOD, pictures((0, 255), (0,)), "back\nfront\nsky\n")
    out = tmp_path / "w.safetensors"
    settings = ["data.name=folder", f"data.root={root}", "batch_size=2", "crop=9", "workers=0"]
    settings += ["steps=1", "precision=float32", "device=cpu"]
    given = ["train", "--out", out, *(part for text in settings for part in ("--set", text))]
    told = done(*given).stderr
    assert told.count("Note: training labels: no pixel of sky (1 of 3 classes)") == 1
    assert told.count("Note: validation labels: only back (label 0) and ignored pixels (255)") == 1

    scored = ["evaluate", "--weights", out, "--data", "folder", "--root", root, "--no-crf"]
    told = done(*scored, "--split", "val").stderr
    assert "Note: data val: only back (label 0) and ignored pixels (255) occur, of 3" in told
    assert "label = 255" in told
    told = done(*scored, "--split", "train").stderr
    assert told == "Note: data train: no pixel of sky (1 of 3 classes)\n"

    for path in (root / "labels" / "train").iterdir():
        label_map(path, np.resize([0, 255], (12, 16)))
    given[2] = tmp_path / "other.safetensors"
    assert_refused(tmp_path, "training labels: only back .* if 255 is a class", *given)


def test_weights_of_one_class_score_100_and_it_is_told(tmp_path):
    root = on_disk(tmp_path / "data", pictures((0,)), pictures((0, 255)), "crack\n")
    save_weights(deeplab_v2_small(1), tmp_path / "w.safetensors")
    given = ["evaluate", "--weights", tmp_path / "w.safetensors", "--data", "folder"]
    told = done(*given, "--root", root, "--no-crf")
    assert "100.00" in told.stdout
    assert "Note: data val: crack is the only class, so that every pixel is it" in told.stderr
