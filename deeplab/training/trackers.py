"""Runs in TensorBoard, Weights & Biases and MLflow: rows, scores by class, validation pictures.

Each is a callback (`deeplab.training.callbacks`); its package is imported when the run starts.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab.errors import InputError
from deeplab.training.callbacks import Callback, Run, Validation
from deeplab.training.logs import named_errors

if TYPE_CHECKING:
    from deeplab.training.run import TrainResult

MOST_TEXT = 500  # characters of a parameter: MLflow's limit in its older releases


class TensorBoardLog(Callback):
    """Rows and pictures for TensorBoard; what lies beyond the step of a resume is hidden there.

    TensorBoard writes in a thread of its own. What goes wrong there reaches `on_row`, and would be
    printed as a traceback too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_start(self, run: Run) -> None:
        """Raises InputError where the package is missing or the folder cannot be written."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "--tensorboard needs the package tensorboard: pip install 'deeplab-triton[logs]'"
            ) from error
        self._hook, threading.excepthook = threading.excepthook, self._unless_raised
        try:
            with named_errors(self.folder):
                self._writer: Any = SummaryWriter(str(self.folder), purge_step=run.step + 1)
        except InputError:
            threading.excepthook = self._hook
            raise

    def on_row(self, row: Mapping[str, Any]) -> None:
        with named_errors(self.folder):
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name, value, row["step"])
            self._writer.flush()

    def on_validation(self, validation: Validation) -> None:
        with named_errors(self.folder):
            for picture in validation.pictures:
                tag = f"validation/{picture.name}"
                self._writer.add_image(tag, picture.panel, validation.step, dataformats="HWC")
            self._writer.flush()

    def on_end(self, result: TrainResult | None) -> None:
        with suppress(OSError):  # `on_row` has raised it already
            self._writer.close()
        threading.excepthook = self._hook

    def _unless_raised(self, failed: threading.ExceptHookArgs) -> None:
        theirs = type(failed.thread).__module__.startswith("tensorboard")
        if not (theirs and isinstance(failed.exc_value, OSError)):
            self._hook(failed)


class WandbLog(Callback):
    """A run of Weights & Biases: `wandb.init(project=project, config=the recipe, **options)`.

    A resumed run is another one there, from its step on, unless options (or WANDB_RUN_ID) give the
    `id` of the first and resume="allow".
    """

    def __init__(self, project: str, **options: Any) -> None:
        self.project, self.options = project, options

    def on_start(self, run: Run) -> None:
        """Raises InputError where the package is missing or no run can be begun."""
        wandb = _package("wandb")
        recipe = dataclasses.asdict(run.config)
        with _named("wandb", "begin a run"):
            self._run: Any = wandb.init(
                project=self.project, config=recipe, **(_title(run, "name") | self.options)
            )
        self._image = wandb.Image

    def on_row(self, row: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in row.items() if name != "step"}
        self._run.log(numbers, step=row["step"])

    def on_validation(self, validation: Validation) -> None:
        shown = {f"validation/{p.name}": self._image(p.panel) for p in validation.pictures}
        if shown:
            self._run.log(shown, step=validation.step)

    def on_end(self, result: TrainResult | None) -> None:
        if result is not None:
            self._run.summary.update({"best": result.best, "stopped": result.stopped})
        failed = result is None or result.interrupted
        self._run.finish(exit_code=int(failed))


class MLflowLog(Callback):
    """A run of MLflow in an experiment: `mlflow.start_run(**options)`, with the recipe as params.

    Where it is kept is MLflow's own matter (MLFLOW_TRACKING_URI). A resumed run is another one
    there unless options (or MLFLOW_RUN_ID) give the `run_id` of the first.
    """

    def __init__(self, experiment: str, **options: Any) -> None:
        self.experiment, self.options = experiment, options

    def on_start(self, run: Run) -> None:
        """Raises InputError where the package is missing or no run can be begun."""
        self._mlflow = _package("mlflow")
        recipe = {key: _text(value) for key, value in dataclasses.asdict(run.config).items()}
        with _named("mlflow", "begin a run"):
            self._mlflow.set_experiment(self.experiment)
            begun = self._mlflow.start_run(**(_title(run, "run_name") | self.options))
            if not begun.data.params:  # a run that goes on keeps those that it has
                self._mlflow.log_params(recipe)

    def on_row(self, row: Mapping[str, Any]) -> None:
        numbers = {_plain(name): float(row[name]) for name in row if name != "step"}
        with _named("mlflow", "log"):
            self._mlflow.log_metrics(numbers, step=row["step"])

    def on_validation(self, validation: Validation) -> None:
        with _named("mlflow", "log"):
            for picture in validation.pictures:
                file = f"validation/{_plain(picture.name)}/{validation.step:06d}.png"
                self._mlflow.log_image(np.array(picture.panel), artifact_file=file)

    def on_end(self, result: TrainResult | None) -> None:
        killed = result is not None and result.interrupted
        self._mlflow.end_run("FAILED" if result is None else "KILLED" if killed else "FINISHED")


def _title(run: Run, key: str) -> dict[str, str]:
    """The run is called like its weights file."""
    return {} if run.out is None else {key: run.out.stem}


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"--{name} needs the package {name}: pip install 'deeplab-triton[{name}]'"
        ) from error


@contextmanager
def _named(name: str, what: str) -> Iterator[None]:
    """Whatever a tracker raises, as a line that names it."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"--{name}: cannot {what} ({reason:.300}); mend that, or leave it out, and go on with "
            "--resume"
        ) from error


def _plain(name: str) -> str:
    """A name of the characters that MLflow takes in metrics and files."""
    return re.sub(r"[^\w./ -]", "_", name)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:MOST_TEXT]
