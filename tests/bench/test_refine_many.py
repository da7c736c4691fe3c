import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import refine_many
from PIL import Image


@pytest.fixture
def small(monkeypatch):
    """Small pictures, and both sides in this process: a child would take seconds to start."""
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    from commands import done  # which needs what the command line needs

    monkeypatch.setattr(refine_many, "HEIGHT", 24)
    monkeypatch.setattr(refine_many, "WIDTH", 30)
    monkeypatch.setattr(refine_many, "LABELS", 3)

    def here(command: Sequence[str]) -> refine_many.Seconds:
        if "--peer" not in command:
            done(*command[command.index("refine") :])
            return {"wall": 1.0, "cpu": 2.0}
        _, _, _, photos, softmax, _, out = command
        Path(out).mkdir(exist_ok=True)
        for path in Path(photos).iterdir():
            refine_many.peer_picture(Path(photos), Path(softmax), Path(out), path.stem)
        return {"wall": here.peer, "cpu": 2 * here.peer}

    here.peer = 2.3
    monkeypatch.setattr(refine_many, "timed", here)
    return here


@pytest.mark.parametrize(("peer", "status"), [(2.3, 0), (2.1, 1)])
def test_the_record_holds_every_round_and_whether_the_bar_is_met(small, tmp_path, peer, status):
    small.peer = peer
    arguments = ["--pictures", "9", "--rounds", "2", "--processes", "2", "--out", str(tmp_path)]
    assert refine_many.main(arguments) == status
    (path,) = tmp_path.iterdir()
    (report,) = json.loads(path.read_text())["comparisons"]
    assert report["passed"] is (status == 0)
    assert report["times"] == pytest.approx({"wall": peer, "cpu": peer})
    assert [len(rounds) for rounds in report["seconds"].values()] == [2, 2]
    assert report["same_labels"] > 0.999
    assert report["facts"]["pictures"] == 9


def test_other_labels_fail_the_gate(tmp_path):
    for name, value in {"one": 0, "other": 1}.items():
        (tmp_path / name).mkdir()
        labels = np.zeros((4, 5), np.uint8)
        labels[0] = value
        Image.fromarray(labels).save(tmp_path / name / "a_labels.png")
    assert refine_many.same_labels(tmp_path / "one", tmp_path / "other") == 0.75
    (tmp_path / "one" / "a_labels.png").rename(tmp_path / "one" / "b_labels.png")
    with pytest.raises(ValueError, match="hold other pictures"):
        refine_many.same_labels(tmp_path / "one", tmp_path / "other")


def test_the_seconds_of_a_command_are_its_own():
    seconds = refine_many.timed([refine_many.sys.executable, "-c", "sum(range(10 ** 6))"])
    assert 0 < seconds["cpu"] < 5
    assert seconds["wall"] > 0
