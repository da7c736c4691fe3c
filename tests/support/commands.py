"""The command line in tests: run it, hold its answers, and the files that it is given."""

import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from typer.testing import CliRunner

from crf import Bilateral, Gaussian
from deeplab import cli
from deeplab.crf_settings import CRFSettings
from deeplab.data.scenes import CLASSES, PALETTE, scene
from deeplab.model import deeplab_v2_small
from deeplab.weights import save_weights

STORED_CRF = CRFSettings(2, Gaussian(2.0, 2.0), Bilateral(3.0, 20.0, 8.0)).as_dict()


def random_weights(path: Path) -> Path:
    """Weights as training leaves them, but random."""
    torch.manual_seed(0)
    model = deeplab_v2_small(num_classes=len(CLASSES))
    with torch.no_grad():  # probabilities that a CRF can still change
        model.head.classifier.weight.mul_(0.1)
    palette = PALETTE[: len(CLASSES)].tolist()
    about = {"class_names": list(CLASSES), "palette": palette, "crf": STORED_CRF}
    save_weights(model, path, about)
    return path


def plain_weights(path: Path, classes: int, names: Sequence[str] | None = None) -> Path:
    """Random weights of the small model for so many classes, with their names if there are any."""
    torch.manual_seed(0)
    about = {} if names is None else {"class_names": list(names)}
    save_weights(deeplab_v2_small(classes), path, about)
    return path


def run(*args: object) -> Any:
    """The command's result; an exception that is not an exit is a failure of the test."""
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def done(*args: object) -> Any:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def press_ctrl_c() -> None:
    """SIGINT to this process, from any of its threads; returns when the main thread has taken it,
    as `deeplab.stopping` does, which gives the next one back to who had it before."""
    before = signal.getsignal(signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    most = time.monotonic() + 60
    while signal.getsignal(signal.SIGINT) is before:
        assert time.monotonic() < most, "nobody takes the signal"
        time.sleep(1e-3)


def assert_refused(tmp_path: Path, message: str, *args: object) -> None:
    """Status 2, one line on standard error that matches, and no file new or changed."""
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = run(*args)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert re.search(message, lines[0]), lines[0]
    assert result.stdout == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def picture(path: Path, height: int = 40, width: int = 56, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(seed, (height, width)).image).save(path)
    return path


def indices(path: Path) -> np.ndarray:
    with Image.open(path) as labels:
        assert labels.mode == "P"
        return np.asarray(labels)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def scribbled(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A picture of two halves, marks on each, and the true labels."""
    truth = np.zeros((20, 30), np.uint8)
    truth[:, 12:] = 1
    grey = np.where(truth == 1, 200, 40).astype(np.uint8)
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "photo.png")
    marks = np.zeros((20, 30, 3), np.uint8)
    marks[8:12, 3:6], marks[8:12, 20:25] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(marks).save(tmp_path / "marks.png")
    return tmp_path / "photo.png", tmp_path / "marks.png", truth
