"""The files of a run, each replaced whole or not at all.

    FILE.safetensors         weights with the best validation mIoU so far (any, before the first)
    FILE-last.safetensors    weights of the last validation or the end
    FILE.state               all that a run needs to go on: see below
    FILE.csv                 the log

A file is written under a temporary name beside its place, flushed to the disk and renamed, so that
a kill, a full disk or a power cut at any moment leaves the one before. The temporary name is fixed:
what a killed run leaves is overwritten by the next one.

The state is a dict of tensors, numbers and texts in torch's format: network and CRF, optimiser,
loss scale, step, running loss, scores, configuration. Chance needs no state: samples and dropout of
step i depend on (seed, i) alone. It is loaded with weights_only=True, which runs nothing from the
file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from deeplab.engine.training.config import FREE_ON_RESUME, TrainConfig
from deeplab.engine.training.recipe import differences
from deeplab.errors import InputError
from deeplab.weights.pickled import damaged_record
from deeplab.whole_file import whole_file

FORMAT = "deeplab training state, version 1"


@dataclass(frozen=True)
class Files:
    """Where the files of a run lie; `best` is the name that the user gives."""

    best: Path

    @property
    def last(self) -> Path:
        return self.best.with_name(f"{self.best.stem}-last{self.best.suffix}")

    @property
    def state(self) -> Path:
        return self.best.with_suffix(".state")

    @property
    def log(self) -> Path:
        return self.best.with_suffix(".csv")

    @property
    def tensorboard(self) -> Path:
        return self.best.with_suffix(".tensorboard")

    def check(self) -> None:
        """Raises InputError for another kind of name, which could be that of another of them."""
        if self.best.suffix != ".safetensors":
            raise InputError(f"{self.best}: expected a name that ends in .safetensors")

    def check_unfinished(self) -> None:
        """Raises InputError where a run was stopped that could go on: a new one would lose it."""
        if not self.state.is_file():
            return
        try:
            state = read_state(self.state)
            done, steps = int(state["step"]), int(stored_config(self.state, state)["steps"])
        except (InputError, KeyError, TypeError, ValueError):
            return  # what cannot be read cannot go on
        if done < steps:
            raise InputError(
                f"{self.state}: here lies a run that was stopped at step {done} of {steps}; go on "
                "with it by --resume, start anew in its place with --overwrite, or give another "
                "--out"
            )


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state in place of the one before; InputError where that fails.

    Tensors go from where they are to the file, one after another.
    """
    try:
        with whole_file(path) as file:
            sink = _Sink(file)
            torch.save({"format": FORMAT, **state}, sink)  # type: ignore[arg-type]
            sink.finish()
    except OSError as error:
        kept = "; the state before it is kept" if path.exists() else ""
        raise InputError(
            f"{path}: cannot write the training state ({error.strerror or error}){kept}; make "
            "room, then go on with --resume"
        ) from error


def read_state(path: Path) -> dict[str, Any]:
    """The training state in a file; InputError where there is none or it cannot be read."""
    if not path.is_file():
        raise InputError(
            f"{path}: no training state to resume; start without --resume, or give the --out of "
            "the run that is to go on"
        )
    try:
        if record := damaged_record(path):
            raise ValueError(f"the checksum of {record} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives raise whatever their parsers meet
        raise InputError(
            f"{path}: not a readable training state: damaged, cut off, or a file of another kind; "
            "start without --resume"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise InputError(f"{path}: expected a {FORMAT}, got {found!r:.100}; start without --resume")
    return state


def stored_config(path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the run that wrote a state, as plain values."""
    return _table(path, state, "config")


def check_agreement(
    path: Path, state: Mapping[str, Any], config: TrainConfig, facts: Mapping[str, Any]
) -> None:
    """InputError unless the run that wrote the state is the one that `config` describes.

    facts: what else fixes a run (number of pictures, names of classes), stored as "facts".
    """
    found = differences(stored_config(path, state), config, FREE_ON_RESUME)
    stored = _table(path, state, "facts")
    found += [
        f"{key} {stored.get(key)} then, {value} now"
        for key, value in facts.items()
        if stored.get(key) != value
    ]
    if found:
        raise InputError(
            f"{path}: another run than the one to resume: {'; '.join(found)}; give the same, or "
            "start without --resume"
        )


class _Sink:
    """A file that takes nothing more after its first error, which `finish` raises.

    torch.save puts an error of its own, which says nothing of the disk, over what `write` raises.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            if self.error is None:
                self.file.write(data)
        except OSError as error:
            self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        pass  # once, when all is written

    def finish(self) -> None:
        """Raises the OSError that came up on the way, if any."""
        if self.error is not None:
            raise self.error


def _table(path: Path, state: Mapping[str, Any], key: str) -> dict[str, Any]:
    try:
        return dict(json.loads(state[key]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: a training state without its {key}; start without --resume"
        ) from error
