"""The layout that the VOC server takes: folders, names, palette, archive."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab.data.outputs import voc_palette
from deeplab.engine.submission import Submission
from deeplab.errors import InputError


def test_predictions_lie_where_the_voc_server_looks_with_vocs_colours(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 21, (12, 17), dtype=np.uint8)
    submission = Submission(tmp_path, "test")
    for name in ("2008_000006", "2007_000032"):
        submission.add(name, labels)
    inside = "results/VOC2012/Segmentation/comp6_test_cls"
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*"))
    assert files == [f"{inside}/2007_000032.png", f"{inside}/2008_000006.png"]
    with Image.open(tmp_path / files[0]) as picture:
        assert (picture.mode, picture.size) == ("P", (17, 12))
        np.testing.assert_array_equal(np.asarray(picture), labels)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), voc_palette()[labels])
    (tmp_path / inside / "stray.png").write_bytes(b"")
    archive = submission.pack()
    assert archive == tmp_path / "results.tgz"
    with tarfile.open(archive) as packed:
        assert packed.getnames() == files
        assert {(m.uid, m.uname, m.gname) for m in packed.getmembers()} == {(0, "", "")}
        member = packed.extractfile(files[1])
        assert member is not None
        assert member.read() == (tmp_path / files[1]).read_bytes()


def test_a_prediction_that_is_not_there_cannot_be_packed(tmp_path: Path) -> None:
    submission = Submission(tmp_path, "test")
    submission.written.append(submission.file("elsewhere"))
    with pytest.raises(InputError, match=r"elsewhere\.png: cannot be packed .*one folder"):
        submission.pack()
    assert not list(tmp_path.iterdir())


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    labels = np.zeros((2, 2), np.uint8)
    for name in ("../x", "/etc/x", "a/../../x"):
        with pytest.raises(InputError, match="lead out of"):
            Submission(tmp_path, "val").add(name, labels)
    with pytest.raises(InputError, match="part of a folder's name"):
        Submission(tmp_path, "../val")
    assert not list(tmp_path.iterdir())
