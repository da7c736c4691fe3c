"""Training runs of a second or less: what the tests of deeplab.training start from."""

import csv
import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deeplab.data.datasets import open_dataset
from deeplab.data.scenes import CLASSES, scene
from deeplab.evaluation.evaluate import Evaluation, LabelledImages, Scores
from deeplab.evaluation.metrics import ConfusionMatrix
from deeplab.model import DeepLab
from deeplab.training import TrainConfig, TrainResult, train, trainer
from deeplab.training.checkpoint import Files

HERE = {"precision": "float32", "device": "cpu", "workers": 0}
TINY = TrainConfig(
    steps=6, batch_size=2, crop=33, lr=0.02, warmup=0, validate_every=100, log_every=1, **HERE
)
SHORT = dataclasses.replace(TINY, steps=3, log_every=20)
FROZEN = dataclasses.replace(TINY, lr=1e-4, model_options={"frozen_bn": True})


def tiny_pictures(count: int = 2) -> list[tuple[Any, ...]]:
    return [tuple(np.array(part) for part in _tiny_picture(seed)) for seed in range(count)]


@functools.cache
def _tiny_picture(seed: int) -> tuple[Any, ...]:
    """Drawn once for all runs: to draw it takes as long as a step of training on it."""
    return tuple(scene(seed, 33))


def run(
    config: TrainConfig, pictures: Any, out: Path | None = None, /, **options: Any
) -> TrainResult:
    options = {"validation": tiny_pictures(), "progress": False} | options
    return train(config, out, dataset=pictures, **options)


@contextmanager
def float64() -> Iterator[None]:
    """Runs inside compute in float64, for claims that hold but for rounding.

    In float32 the sums of a loss near 10 differ in the last place from processor to processor, and
    a gradient whose terms nearly cancel by more: in float64 what is the same agrees to 1e-10, and
    what is not stands out.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def own_data(folder: Path, broken: str = "") -> LabelledImages:
    """A data set of four pictures in files, some of them cut off."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    (folder / "classes.txt").write_text("a\nb\n")
    rng = np.random.default_rng(0)
    for name in "pqrs":
        image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        image.save(folder / "images" / f"{name}.png")
        labels = Image.fromarray(rng.integers(0, 2, (40, 50), dtype=np.uint8))
        labels.save(folder / "labels" / f"{name}.png")
        if name in broken:
            whole = (folder / "images" / f"{name}.png").read_bytes()
            (folder / "images" / f"{name}.png").write_bytes(whole[: len(whole) // 2])
    return open_dataset("folder", folder, "all")


class Acting:
    """Pictures of which something is done when the `at`-th is asked for."""

    def __init__(self, pictures: Sequence[Any], at: int, act: Callable[[], object]) -> None:
        self.pictures, self.at, self.act, self.calls = pictures, at, act, 0

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        self.calls += 1
        if self.calls == self.at:
            self.act()
        return self.pictures[index]


class Signalling(Acting):
    """Pictures of which the `at`-th that is asked for sends this process a signal."""

    def __init__(self, pictures: Sequence[Any], at: int, number: int) -> None:
        super().__init__(pictures, at, lambda: os.kill(os.getpid(), number))


def raises(error: BaseException) -> Callable[[], None]:
    """A function that raises it."""

    def act() -> None:
        raise error

    return act


def stop_at(step: int, pictures: Sequence[Any], number: int = signal.SIGTERM) -> Signalling:
    """Pictures that stop a run of TINY after `step` steps."""
    return Signalling(pictures, TINY.batch_size * step, number)


def equal(a: DeepLab, b: DeepLab) -> bool:
    """Whether two models are the same bit for bit."""
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


def script_scores(monkeypatch: pytest.MonkeyPatch, *mious: float) -> None:
    """Let the validations of a run find these scores."""
    scores = iter(mious)

    def scripted(*_args: object, **_options: object) -> Evaluation:
        miou = next(scores)
        found = Scores(miou, miou, miou, None, dict.fromkeys(CLASSES))
        confusion = {"network": ConfusionMatrix(len(CLASSES))}
        return Evaluation(1, 4, found, None, confusion=confusion)

    monkeypatch.setattr(trainer, "evaluate", scripted)


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """What lies in a folder, and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def rows(out: Path) -> list[dict[str, str]]:
    """The log of the run at `out`."""
    with Files(out).log.open(newline="") as file:
        return list(csv.DictReader(file))
