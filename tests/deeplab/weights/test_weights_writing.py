"""deeplab.weights.save_weights: all or nothing, whatever fails, is killed or writes beside it."""

import os
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from several_processes import Started
from torch import nn
from weights_files import assert_same_state, refused, small

from deeplab.errors import InputError
from deeplab.weights import load_model, save_weights


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(path):
    save_weights(small(), path)
    return path


@pytest.mark.parametrize(
    ("call", "failure", "raised"),
    [
        ("fsync", OSError(28, "No space left on device"), InputError),
        ("replace", KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    saved, monkeypatch, call, failure, raised
):
    before = saved.read_bytes()

    def fail(*_arguments):
        raise failure

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(raised) as caught:
        save_weights(small(seed=1), saved)
    if raised is InputError:
        assert str(saved) in str(caught.value)
        assert "No space left on device" in str(caught.value)
    assert saved.read_bytes() == before
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


KILLED = """
import os, signal, sys
from deeplab.model import deeplab_v2_small
from deeplab.weights import save_weights
os.replace = lambda part, path: os.kill(os.getpid(), signal.SIGKILL)
save_weights(deeplab_v2_small(2), sys.argv[1])
"""


def test_what_a_killed_writer_leaves_is_written_over_by_the_next(saved):
    killed = Started(("-c", KILLED, str(saved)))
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert_same_state(load_model(saved), small())
    part = saved.with_name(f".{saved.name}.part")
    part.write_bytes(part.read_bytes() * 2)  # longer than what comes
    save_weights(small(seed=1), saved)
    assert_same_state(load_model(saved), small(seed=1))
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_two_writers_at_once_leave_a_whole_file_at_every_moment(saved):
    models = [small(seed=seed) for seed in (0, 1)]
    firsts = [model.head.classifier.weight[0, 0, 0, 0].item() for model in models]
    enough = Event()

    def write_on(model):
        while not enough.is_set():
            save_weights(model, saved)

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write_on, model) for model in models]
        try:
            read = [load_model(saved).head.classifier.weight for _ in range(10)]
        finally:
            enough.set()
    assert [writer.exception() for writer in writers] == [None, None]
    assert {weight[0, 0, 0, 0].item() for weight in read} <= set(firsts)
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_the_file_and_then_its_new_name_are_flushed_to_the_disk(path, monkeypatch):
    flushed = []

    def flush(descriptor):
        flushed.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))

    monkeypatch.setattr(os, "fsync", flush)
    save_weights(small(), path)
    assert flushed == [(False, False), (True, True)]


def test_a_link_in_place_of_the_temporary_file_is_not_followed(path, tmp_path):
    other = tmp_path / "other"
    other.write_text("mine")
    path.with_name(f".{path.name}.part").symlink_to(other)
    assert str(path) in refused(save_weights, small(), path)
    assert other.read_text() == "mine"


def test_a_written_file_has_the_permissions_of_any_new_file(saved, tmp_path):
    (tmp_path / "plain").write_text("")
    assert saved.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "where", ["missing/model.safetensors", "file/model.safetensors", "n" * 300]
)
def test_a_path_that_cannot_be_written_is_named(tmp_path, where):
    (tmp_path / "file").write_text("")
    message = refused(save_weights, small(), tmp_path / where)
    assert where in message
    assert "existing folder" in message


def test_a_folder_is_no_file_to_write(tmp_path):
    assert "it is a folder" in refused(save_weights, small(), tmp_path)


def test_only_a_deeplab_is_saved(path):
    with pytest.raises(TypeError, match=r"not Linear.*_orig_mod.*model\.module"):
        save_weights(nn.Linear(1, 1), path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"class_names": ["a"]}, "class_names must be 2 names, one for each class, not 1"),
        ({"class_names": "ab"}, "class_names must be a list of strings"),
        ({"class_names": [1, 2]}, "class_names must be a list of strings"),
        ({"palette": [[0, 0, 0]]}, "palette must be at least 2 colours, not 1"),
        ({"palette": [[0, 0, 0], [0, 0, 256]]}, "palette must be a list of [r, g, b]"),
        ({"palette": [[0, 0], [0, 0]]}, "palette must be a list of [r, g, b]"),
        ({"num_classes": 3}, "num_classes comes from the model"),
        ({"model": "deeplab_v2_vgg16"}, "model comes from the model"),
        ({"mean": torch.zeros(3)}, "Tensor is not JSON serializable; use numbers"),
    ],
)
def test_metadata_that_do_not_fit_are_refused_before_writing(path, metadata, said):
    message = refused(save_weights, small(), path, metadata)
    assert message.startswith("metadata: ")
    assert said in message
    assert not path.exists()
