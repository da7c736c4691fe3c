"""Activation maps as pipelines save them, and that nothing in a file is run."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from deeplab.data.cams import holds_cams, read_cams
from deeplab.errors import InputError

SIZE = 5, 7
MAPS = np.random.default_rng(0).random((2, *SIZE), np.float32)
CLASSES = [14, 3]


def as_irn(path: Path) -> Path:
    """As make_cam.py of irn: the classes are a tensor, and so are maps of another size."""
    keys, small = torch.tensor(CLASSES), torch.rand(2, 2, 2)
    np.save(path, {"keys": keys, "cam": small, "high_res": MAPS}, allow_pickle=True)
    return path


def as_psa(path: Path) -> Path:
    """As infer_cls.py of psa."""
    np.save(path, dict(zip(CLASSES, MAPS, strict=True)), allow_pickle=True)
    return path


def as_python_2(path: Path) -> Path:
    """The same by a protocol of Python 2, whose bytes are spelled as text."""
    header = np.lib.format.header_data_from_array_1_0(np.array(None, object))
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        maps = dict(zip(map(np.int64, CLASSES), MAPS, strict=True))
        pickle.dump(np.array(maps, object), file, protocol=2)
    return path


def as_npz(path: Path) -> Path:
    path = path.with_suffix(".npz")
    np.savez(path, keys=CLASSES, maps=MAPS)
    return path


@pytest.mark.parametrize("write", [as_irn, as_psa, as_python_2, as_npz])
def test_maps_are_read_as_pipelines_save_them(tmp_path, write):
    path = write(tmp_path / "a.npy")
    assert holds_cams(path)
    cams = read_cams(path, SIZE)
    assert cams.classes.tolist() == CLASSES
    assert np.array_equal(cams.maps, MAPS)


@pytest.mark.parametrize("content", [{}, {"keys": [], "high_res": np.empty((0, *SIZE), "f4")}])
def test_a_picture_without_tags_has_no_maps(tmp_path, content):
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    assert read_cams(tmp_path / "a.npy", SIZE).maps.shape == (0, *SIZE)


class Code:
    """Runs a command where it is unpickled as usual."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    path, mark = tmp_path / "a.npy", tmp_path / "ran"
    np.save(path, {"keys": CLASSES, "high_res": MAPS, "more": Code(mark)}, allow_pickle=True)
    with pytest.raises(InputError, match=r"a.npy: .*mkdir could run code"):
        read_cams(path, SIZE)
    assert not mark.exists()
    np.load(path, allow_pickle=True)  # as usual, it does
    assert mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({3: MAPS[0, 1:]}, r"each map must be \[5, 7\].*not \[4, 7\]"),
        ({"keys": [3], "high_res": MAPS}, r"must be \[1, 5, 7\].*not high_res \[2, 5, 7\]"),
        ({"keys": [3, 3], "high_res": MAPS}, "classes must be all different"),
        ({"keys": [3, 254], "high_res": MAPS}, "classes must be whole numbers from 0 to 253"),
        ({"person": MAPS[0]}, "classes must be whole numbers"),
        ({3: MAPS[0] * 255}, "maps must be from 0 to 1, not from 0 to 2"),
        ({3: MAPS[0] * np.nan}, "NaN or Inf"),
        ({3: (MAPS[0] > 0.5).astype(int)}, "floating point"),
        ([MAPS], "cannot be read as CAMs"),
    ],
)
def test_what_is_wrong_with_maps_is_said(tmp_path, content, message):
    boxed = np.empty((), object)
    boxed[()] = content
    np.save(tmp_path / "a.npy", boxed, allow_pickle=True)
    with pytest.raises(InputError, match=rf"a.npy: .*{message}"):
        read_cams(tmp_path / "a.npy", SIZE)


def test_other_files_hold_no_maps(tmp_path):
    np.save(tmp_path / "p.npy", MAPS)
    np.savez(tmp_path / "p.npz", probabilities=MAPS)
    (tmp_path / "cut.npy").write_bytes(as_irn(tmp_path / "a.npy").read_bytes()[:9])
    for name in ("p.npy", "p.npz", "cut.npy", "none.npy"):
        assert not holds_cams(tmp_path / name)
    cut = as_irn(tmp_path / "a.npy").read_bytes()[:-40]
    (tmp_path / "a.npy").write_bytes(cut)
    for name in ("a.npy", "none.npy"):
        with pytest.raises(InputError, match=name):
            read_cams(tmp_path / name, SIZE)
