"""Who is told of a run, what, and when; early stopping; pictures, curves and trackers."""

import dataclasses
import re
import signal
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_training import SHORT, TINY, raises, rows, run, script_scores, stop_at

from deeplab.data.scenes import CLASSES
from deeplab.errors import InputError
from deeplab.evaluation.panels import GAP, HEADING, LARGEST, SMALLEST, WRONG, panel
from deeplab.training import Callback
from deeplab.training.checkpoint import Files, read_state, write_state
from deeplab.training.trackers import MLflowLog, WandbLog

EACH = dataclasses.replace(TINY, validate_every=1)
DOCUMENT = Path(__file__).parents[3] / "docs" / "callbacks.md"


class Told(Callback):
    """Notes the calls; stops at a step if told to."""

    def __init__(self, stop_at=0):
        self.calls, self.stop_at, self.pictures, self.result = [], stop_at, [], None

    def on_start(self, run):
        self.calls.append(("start", run.step))
        self.run = run

    def on_row(self, row):
        self.calls.append(("row", row["step"]))

    def on_validation(self, validation):
        self.calls.append(("validation", validation.step))
        self.pictures.append(validation.pictures)
        return "seen enough" if validation.step == self.stop_at else None

    def on_end(self, result):
        self.calls.append(("end", None))
        self.result = result


def test_a_callback_is_told_of_the_start_rows_validations_and_the_end_in_order(pictures):
    told = Told()
    config = dataclasses.replace(SHORT, log_every=1, validate_every=2)
    result = run(config, pictures, callbacks=[told])
    steps = [("row", 1), ("row", 2), ("validation", 2), ("row", 3), ("validation", 3)]
    assert told.calls == [("start", 0), *steps, ("end", None)]
    assert told.result is result
    assert told.run.class_names == tuple(CLASSES)
    assert told.pictures == [(), ()]


def test_an_error_ends_each_started_callback_once_without_a_result(pictures):
    first, last, never = Told(), Told(), Told()
    last.on_validation = lambda _: raises(KeyError("mine"))()
    never.on_start = lambda _: raises(InputError("no service"))()
    with pytest.raises(KeyError, match="mine"):
        run(SHORT, pictures, callbacks=[first, last])
    assert first.calls[-1] == last.calls[-1] == ("end", None)
    assert first.result is None
    again = Told()
    with pytest.raises(InputError, match="no service"):
        run(SHORT, pictures, callbacks=[again, never])
    assert again.calls == [("start", 0), ("end", None)]
    assert never.calls == []


def test_a_callback_stops_a_run_that_resume_goes_on_with(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    result = run(EACH, pictures, out, callbacks=[Told(stop_at=2)])
    assert (result.steps, result.stopped, result.interrupted) == (2, "seen enough", False)
    told = Told(stop_at=6)  # the last step, where nothing is left to stop
    result = run(EACH, pictures, out, callbacks=[told], resume=True)
    assert (result.steps, result.stopped) == (6, "")
    assert told.calls[0] == ("start", 2)
    assert [row["step"] for row in rows(out)] == list("123456")


MIOUS = (0.2, 0.5, 0.4, 0.5, 0.45, 0.6)  # the best at step 2; three without a better one at step 5


def test_patience_ends_a_run_and_says_why(pictures, tmp_path, monkeypatch, capfd):
    out = tmp_path / "w.safetensors"
    config = dataclasses.replace(EACH, patience=3)
    script_scores(monkeypatch, *MIOUS)
    result = run(config, pictures, out)
    why = "3 validations without a better mIoU than 50.00 at step 2"
    assert (result.steps, result.stopped, result.interrupted) == (5, why, False)
    assert result.best == {"step": 2, "miou": 0.5}
    with pytest.raises(InputError, match="a run that has stopped early at step 5 of 6 lies here"):
        run(config, pictures, out)
    told = Told()
    again = run(config, pictures, out, resume=True, callbacks=[told])
    assert (again.steps, again.stopped, told.calls) == (5, why, [])
    assert "the run has stopped early (3 validations" in capfd.readouterr().err
    script_scores(monkeypatch, MIOUS[5])
    on = run(dataclasses.replace(config, patience=4), pictures, out, resume=True)
    assert (on.steps, on.stopped, on.best["step"]) == (6, "", 6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 3, 4])
def test_patience_of_a_resumed_run_is_that_of_one_piece(
    pictures, tmp_path, monkeypatch, number, at
):
    """Also where Ctrl-C adds a validation between two of the recipe, and a good one."""
    config = dataclasses.replace(TINY, validate_every=2, patience=1)
    of_step = {1: 0.9, 2: 0.5, 3: 0.9, 4: 0.4, 5: 0.9, 6: 0.6}
    planned = [of_step[2], of_step[4]]
    script_scores(monkeypatch, *planned)
    whole = run(config, pictures)
    assert (whole.steps, bool(whole.stopped)) == (4, True)
    out, extra = tmp_path / "w.safetensors", number == signal.SIGINT and at % 2 == 1
    before = [of_step[step] for step in (2, 4) if step < at]
    found = [*before, *([of_step[at]] if extra else []), *planned[len(before) :]]
    script_scores(monkeypatch, *found)
    run(config, stop_at(at, pictures, number), out)
    parts = run(config, pictures, out, resume=True)
    assert (parts.steps, parts.stopped) == (whole.steps, whole.stopped)


def test_pictures_are_the_same_few_each_time_and_lie_beside_the_weights(pictures, tmp_path):
    out, told = tmp_path / "w.safetensors", Told()
    config = dataclasses.replace(TINY, steps=2, validate_every=1)
    run(config, pictures, out, pictures=1, callbacks=[told])
    assert [[p.name for p in shown] for shown in told.pictures] == [["0"], ["0"]]
    files = sorted(path.name for path in (Files(out).pictures / "0").iterdir())
    assert files == ["000001.png", "000002.png"]
    with Image.open(Files(out).pictures / "0" / "000002.png") as drawn:
        np.testing.assert_array_equal(np.asarray(drawn), told.pictures[1][0].panel)
    stale = Files(out).pictures / "0" / "000009.png"
    stale.write_bytes(b"of a longer run")
    run(dataclasses.replace(config, steps=1), pictures, out, pictures=1, overwrite=True)
    assert [path.name for path in stale.parent.iterdir()] == ["000001.png"]
    with pytest.raises(ValueError, match="pictures must be at least 0, not -1"):
        run(config, pictures, pictures=-1)


def test_pictures_of_a_moved_run_are_not_replaced_unasked(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    (Files(out).pictures / "a").mkdir(parents=True)
    (Files(out).pictures / "a" / "000100.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"\(w\.pictures\)"):
        run(SHORT, pictures, out)


def test_a_panel_shows_errors_in_red_and_what_does_not_count_in_black():
    image = np.full((SMALLEST, SMALLEST, 3), 128, np.uint8)
    truth, predicted = np.zeros((2, SMALLEST, SMALLEST), np.uint8)
    truth[:50], predicted[40:60] = 255, 1
    palette = np.zeros((256, 3), np.uint8)
    shown = panel(image, truth, predicted, palette)
    assert shown.shape == (HEADING + SMALLEST, 4 * SMALLEST + 3 * GAP, 3)
    errors = shown[HEADING:, -SMALLEST:]
    assert (errors[:50] == 0).all()
    assert (errors[50:60] == WRONG).all()
    assert (errors[60:] == 128).all()
    assert (shown[HEADING : HEADING + 50, SMALLEST + GAP : 2 * SMALLEST + GAP] == 0).all()
    large = panel(np.zeros((900, 1800, 3), np.uint8), *np.zeros((2, 900, 1800)), palette)
    assert large.shape[:2] == (HEADING + LARGEST // 2, 4 * LARGEST + 3 * GAP)


def test_the_log_and_the_curves_have_the_iou_of_each_class(pictures, tmp_path, monkeypatch, capfd):
    out = tmp_path / "w.safetensors"
    config = dataclasses.replace(TINY, validate_every=5, steps=10)
    result = run(config, pictures, out)
    last = rows(out)[-1]
    known = {f"iou/{name}": iou for name, iou in result.metrics["iou"].items()}
    assert {name: float(last[name]) if last[name] else None for name in known} == known
    with Image.open(Files(out).curves) as drawn:
        assert drawn.size == (1200, 800)
        assert len(drawn.convert("RGB").getcolors(1 << 20)) > 50
    assert "not drawn" not in capfd.readouterr().err
    Files(out).curves.unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run(dataclasses.replace(config, steps=11), pictures, out, resume=True)
    assert not Files(out).curves.exists()
    assert re.search(r"w\.curves\.png is not drawn: .*triton\[plots\]", capfd.readouterr().err)


class FakeWandb(types.ModuleType):
    """wandb.init(project, config, name, ...) -> run; run.log(data, step); run.finish(exit_code)."""

    def __init__(self):
        super().__init__("wandb")
        self.logged, self.ended, self.summary = [], [], {}

    def init(self, *, project, config, name=None, id=None):
        self.begun = (project, config["steps"], name, id)
        return self

    def Image(self, data_or_path):
        return data_or_path

    def log(self, data, step=None):
        self.logged.append((step, data))

    def finish(self, exit_code=None):
        self.ended.append(exit_code)


def test_wandb_gets_rows_and_pictures(pictures, tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    log = WandbLog("mine", id="x")
    result = run(SHORT, pictures, tmp_path / "w.safetensors", pictures=1, callbacks=[log])
    assert wandb.begun == ("mine", 3, "w", "x")
    (step, row), (at, shown) = wandb.logged
    assert (step, at, row["miou"]) == (3, 3, result.metrics["miou"])
    assert "step" not in row
    assert shown["validation/0"].dtype == np.uint8
    assert (wandb.ended, wandb.summary["best"]) == ([0], result.best)
    run(SHORT, stop_at(1, pictures), callbacks=[WandbLog("mine")])
    assert wandb.ended == [0, 1]


class FakeMLflow(types.ModuleType):
    """The fluent calls that the adapter makes."""

    def __init__(self):
        super().__init__("mlflow")
        self.params, self.metrics, self.images, self.ended = {}, {}, [], []

    def set_experiment(self, experiment_name):
        self.experiment = experiment_name

    def start_run(self, run_id=None, run_name=None):
        self.name = run_name
        return types.SimpleNamespace(data=types.SimpleNamespace(params=dict(self.params)))

    def log_params(self, params):
        assert not self.params
        assert len(params) <= 100  # MLflow's limit for a call
        self.params = params

    def log_metrics(self, metrics, step=None):
        assert all(re.fullmatch(r"[/\w.\- ]+", name) for name in metrics)
        self.metrics[step] = metrics

    def log_image(self, image, artifact_file=None):
        self.images.append((image.shape, artifact_file))

    def end_run(self, status="FINISHED"):
        self.ended.append(status)


def test_mlflow_gets_the_recipe_rows_and_pictures(pictures, tmp_path, monkeypatch):
    mlflow = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    out = tmp_path / "w.safetensors"
    run(SHORT, stop_at(2, pictures), out, callbacks=[MLflowLog("mine")])
    result = run(SHORT, pictures, out, pictures=1, callbacks=[MLflowLog("mine")], resume=True)
    assert (mlflow.experiment, mlflow.name, mlflow.params["steps"]) == ("mine", "w", "3")
    assert mlflow.metrics[3]["miou"] == result.metrics["miou"]
    assert [name for _, name in mlflow.images] == ["validation/0/000003.png"]
    assert mlflow.ended == ["KILLED", "FINISHED"]
    mlflow.log_metrics = lambda *_, **__: raises(ConnectionError("refused\nby the server"))()
    with pytest.raises(InputError, match=r"--mlflow: cannot log \(refused\); .* --resume"):
        run(SHORT, pictures, callbacks=[MLflowLog("mine")])
    assert mlflow.ended[-1] == "FAILED"


@pytest.mark.parametrize(("log", "name"), [(WandbLog, "wandb"), (MLflowLog, "mlflow")])
def test_a_tracker_that_is_missing_names_the_extra(pictures, tmp_path, monkeypatch, log, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"--{name} needs .*'deeplab-triton\[{name}\]'"):
        run(SHORT, pictures, callbacks=[log("mine")])


def test_tensorboard_gets_pictures_and_the_iou_of_each_class(pictures, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "w.safetensors"
    result = run(SHORT, pictures, out, tensorboard=True, pictures=1)
    found = events.EventAccumulator(str(Files(out).tensorboard))
    found.Reload()
    assert found.Tags()["images"] == ["validation/0"]
    (sky,) = found.Scalars("iou/sky")
    assert (sky.step, sky.value) == (3, pytest.approx(result.metrics["iou"]["sky"]))


def test_a_state_of_before_early_stopping_resumes(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    run(TINY, stop_at(2, pictures), out)
    state = read_state(Files(out).state)
    del state["early"], state["stopped"]
    write_state(Files(out).state, state)
    assert run(TINY, pictures, out, resume=True).steps == 6


def test_the_example_of_the_document_runs(monkeypatch, capsys):
    (example,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)
    exec(compile(example, str(DOCUMENT), "exec"), {})
    said = capsys.readouterr().out
    assert "deeplab_v2_small: 11 classes, from step 0" in said
    assert "step 2: loss" in said
    assert "finished" in said
