"""The files of a run, each replaced whole or not at all.

    FILE.safetensors         weights with the best validation mIoU so far (any, before the first)
    FILE-last.safetensors    weights of the last validation or the end
    FILE.state               all that a run needs to go on: see below
    FILE.csv                 the log
    FILE.curves.png          the log as a picture, at the end
    FILE.pictures            pictures of the validations, where they are asked for

A new run takes the place of none of them unless it is told to (`Files.check_free`). The state is a
dict of tensors, numbers and texts in torch's format: network and CRF, optimiser, loss scale, step,
running loss, scores, configuration. Chance needs no state: samples and dropout of step i depend on
(seed, i) alone. It is loaded with weights_only=True, which runs nothing from the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from deeplab.data.outputs import check_writable_file
from deeplab.errors import InputError
from deeplab.training.config import FREE_ON_RESUME, TrainConfig
from deeplab.training.logs import has_rows
from deeplab.training.pictures import pictures_in
from deeplab.training.recipe import differences
from deeplab.weights.pickled import damaged_record
from deeplab.whole_file import whole_file

ANEW = "start anew in its place with --overwrite, or give another --out"
GO_ON = "train on with --resume and more --steps"
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

    @property
    def curves(self) -> Path:
        return self.best.with_suffix(".curves.png")

    @property
    def pictures(self) -> Path:
        return self.best.with_suffix(".pictures")

    def check_name(self) -> None:
        """Raises InputError for another kind of name, which could be that of another of them."""
        if self.best.suffix != ".safetensors":
            raise InputError(f"{self.best} must be a name that ends in .safetensors")

    def check_writable(self) -> None:
        """Raises InputError where the files cannot be written."""
        for path in (self.best, self.last, self.state, self.log, self.curves):
            check_writable_file(path)
        if not self.best.parent.is_dir():
            raise InputError(f"{self.best}: cannot write, there is no such folder; create it first")

    def check_free(self) -> None:
        """Raises InputError where a new run would take the place of anything, and says of what.

        A log without rows, which a run leaves that failed in its first step, is not in the way.
        """
        files = (self.best, self.last, self.state, self.curves)
        there = [path for path in files if os.path.lexists(path)]
        there += [self.log] if has_rows(self.log) else []
        there += [self.pictures] if pictures_in(self.pictures) else []
        if not there:
            return
        what, instead = self._found()
        names = ", ".join(path.name for path in there)
        raise InputError(f"{self.best}: {what} ({names}); {instead}{ANEW}")

    def instead(self) -> str:
        """What to do in place of going on, for the end of a message; nothing is lost unasked."""
        return f"{self._from_weights()}{ANEW}"

    def _found(self) -> tuple[str, str]:
        """What lies here, and what can be done with it: a phrase that ends with a comma."""
        if not os.path.lexists(self.state):
            if not self._from_weights():
                return "the log of a run that left no weights lies here", ""
            return "weights lie here, without the state of a run", self._from_weights()
        try:
            state = read_state(self.state)
            done, steps = steps_done(self.state, state), stored_steps(self.state, state)
        except InputError:
            return "a training state that cannot be read lies here", self._from_weights()
        if state.get("stopped"):
            found = f"a run that has stopped early at step {done} of {steps} lies here"
            return found, "go on with it by --resume and a higher patience, "
        if done < steps or state.get("validated") != done:
            before = "" if done < steps else ", before its validation,"
            found = f"a run that was stopped at step {done} of {steps}{before} lies here"
            return found, "go on with it by --resume, "
        return (
            f"a run that has finished its {steps} steps lies here",
            f"{GO_ON}, {self._from_weights()}",
        )

    def _from_weights(self) -> str:
        """How to start from the weights here, with a comma behind; empty where there are none."""
        for path in (self.last, self.best):
            if path.is_file():
                return f"start from its weights with --weights {path} and another --out, "
        return ""


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state in place of the one before; InputError where that fails."""
    try:
        with whole_file(path) as file:
            sink = _Sink(file)
            torch.save({"format": FORMAT, **state}, sink)  # type: ignore[arg-type]
            sink.finish()
    except OSError as error:
        then = "make room, then start again"
        if path.exists():
            then = "the state before it is kept: make room, then go on with --resume"
        raise InputError(
            f"{path}: cannot write the training state ({error.strerror or error}); {then}"
        ) from error


def read_state(path: Path) -> dict[str, Any]:
    """The training state in a file; InputError where there is none or it cannot be read."""
    if not path.is_file():
        files = _files_of(path)
        there = os.path.lexists(files.best) or os.path.lexists(files.last)
        start = files.instead() if there else "leave out --resume to start one"
        raise InputError(
            f"{path}: no training state to resume; give the --out of the run that is to go on, or "
            f"{start}"
        )
    try:
        if record := damaged_record(path):
            raise ValueError(f"the checksum of {record} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives raise whatever their parsers meet
        raise InputError(
            f"{path}: not a readable training state: damaged, cut off, or a file of another kind; "
            f"{_files_of(path).instead()}"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise InputError(
            f"{path} must be a {FORMAT}, not {found!r:.100}; {_files_of(path).instead()}"
        )
    return state


def stored_config(path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the run that wrote a state, as plain values."""
    return _table(path, state, "config")


def steps_done(path: Path, state: Mapping[str, Any]) -> int:
    """How many steps the run that wrote a state had done."""
    return _whole_number(path, state, "step")


def stored_steps(path: Path, state: Mapping[str, Any]) -> int:
    """How many steps it was to have."""
    return _whole_number(path, stored_config(path, state), "steps")


def check_agreement(
    path: Path, state: Mapping[str, Any], config: TrainConfig, facts: Mapping[str, Any]
) -> None:
    """InputError unless the run that wrote the state is the one that `config` describes.

    `config.steps` may differ, but not be fewer than are done. facts: what else fixes a run (number
    of pictures, names of classes), stored as "facts".
    """
    found = differences(stored_config(path, state), config, FREE_ON_RESUME | {"steps"})
    stored = _table(path, state, "facts")
    found += [
        f"{key} {stored.get(key)} then, {value} now"
        for key, value in facts.items()
        if stored.get(key) != value
    ]
    if found:
        raise InputError(
            f"{path}: another run than the one to resume: {'; '.join(found)}; give the same, or "
            f"{_files_of(path).instead()}"
        )
    done = steps_done(path, state)
    if config.steps < done:
        raise InputError(
            f"steps must be at least {done}, which the run of {path} has done, not "
            f"{config.steps}; resume it with as many or more, or start another with another --out"
        )


def _files_of(state: Path) -> Files:
    return Files(state.with_suffix(".safetensors"))


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
        if self.error is not None:
            raise self.error


def _whole_number(path: Path, table: Mapping[str, Any], key: str) -> int:
    if type(table.get(key)) is not int:
        raise InputError(f"{path}: a training state without its {key}; {_files_of(path).instead()}")
    return table[key]


def _table(path: Path, state: Mapping[str, Any], key: str) -> dict[str, Any]:
    try:
        return dict(json.loads(state[key]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: a training state without its {key}; {_files_of(path).instead()}"
        ) from error
