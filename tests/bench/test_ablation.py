"""The ablation: its rows, a whole run on tiny pictures, kills, and what the table says."""

import dataclasses
import json
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("typer", reason="typer is not installed: pip install .")
pytest.importorskip("pydantic", reason="pydantic is not installed: pip install .")

import ablation
import ablation_run
from ablation_pictures import choose_pictures, thin_parts
from ablation_records import Records, Step
from ablation_rows import PAPERS, PLANS, Paper, config_of
from commands import done

from deeplab.data.datasets import open_dataset
from deeplab.data.scenes import scene
from deeplab.evaluation.tune_crf import Space
from deeplab.model import build
from deeplab.training import trainer
from deeplab.training.losses import label_strides
from deeplab.weights import read_metadata, save_weights

TINY = "timm:test_efficientnet"
ROWS = PLANS["lite0"].rows()
SIDE = 33


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sequences of three pictures to learn from, two to score."""
    root = tmp_path_factory.mktemp("camvid")
    names = {"train": [f"{s}_{i}" for s in "abc" for i in range(3)], "val": ["a_7", "a_8"]}
    for split, those in names.items():
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for number, name in enumerate(those):
            image, labels = scene(number, SIDE)
            Image.fromarray(image).save(root / "images" / split / f"{name}.png")
            Image.fromarray(labels).save(root / "labels" / split / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def run(timm: Any, camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """The command on these pictures, on a tiny encoder, two steps a row and a small search."""
    weights = tmp_path_factory.mktemp("imagenet") / "encoder.safetensors"
    torch.manual_seed(0)
    save_weights(build("deeplab_v2_base", 5, backbone=TINY), weights)

    def command(folder: Path, *more: str) -> int:
        settings = [f"model_options.backbone={TINY}", "steps=2", "batch_size=2", f"crop={SIDE}"]
        settings += ["warmup=0", "validation_scales=[0.5]", "validate_every=1", "save_every=1"]
        given = [part for setting in settings for part in ("--set", setting)]
        places = {"--root": camvid, "--weights": weights}
        places |= {"--work": folder / "work", "--out": folder / "records"}
        given += [str(part) for pair in places.items() for part in pair]
        return ablation.main([*given, *more])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation_run, "SPACE", Space((4.0,), (8.0,), (8.0, 16.0)))
        patch.setattr(ablation_run, "ROUNDS", 0)
        patch.setattr(ablation_run, "WIDTHS", (1, 3))
        patch.setattr(ablation.torch, "set_num_threads", lambda _: None)  # of the other tests
        yield command


@pytest.fixture(scope="module")
def whole(run: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of all rows with one seed."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, "--seeds", "0") == 0
    return folder


def record_of(folder: Path, row: str, seed: int = 0, name: str = "ablation-lite0") -> Any:
    return json.loads((folder / "records" / name / f"{row}-{seed}.json").read_text())


# The rows


@pytest.mark.parametrize("name", PLANS)
def test_a_row_differs_from_the_one_before_in_what_it_says(name: str, tmp_path: Path) -> None:
    plan = PLANS[name]

    def flat(row: str) -> dict[str, Any]:
        config = dataclasses.asdict(config_of(plan, row, 1, {}, tmp_path, "imagenet"))
        options = config.pop("model_options")
        return config | {f"model_options.{key}": value for key, value in options.items()}

    rows = plan.rows()
    for row in rows.values():
        now, before = flat(row.name), flat(row.after) if row.after else {}
        assert now["seed"] == 1
        if not before:
            continue
        changed = {k for k in now.keys() | before.keys() if now.get(k) != before.get(k)}
        said = set(row.change)
        said |= {"weights"} if row.name == "pretrained" else set()
        assert changed == said | ({"steps", "lr", "warmup", "validate_every"} & changed)
        assert (changed == said) or row.name == "further"
    assert flat("further")["steps"] == flat("pretrained")["steps"] // 5
    assert flat("msc")["weights"] == ""
    assert flat("pretrained")["weights"] == "imagenet"
    if name == "full":  # lite0's networks need timm
        for row in rows:
            config = config_of(plan, row, 0, {}, tmp_path, "imagenet")
            with torch.device("meta"):
                model = build(config.model, 11, **config.model_options)
            assert set(label_strides(model, config.loss_stride)) == {1}
    assert {paper.row for paper in PAPERS} < set(rows)


def test_what_is_kept_from_training_is_the_end_of_each_sequence(camvid: Path) -> None:
    names = [f"a_{i:02}" for i in range(11)] + ["b_1", "b_2"]
    assert ablation_run.held_out(names) == [9, 10, 12]
    config = config_of(PLANS["lite0"], "stride32", 0, {}, camvid, "")
    data = ablation_run.Data.of(camvid, config)
    assert data.tune.names == ["a_2", "b_2", "c_2"]
    assert data.learn.names == ["a_0", "a_1", "b_0", "b_1", "c_0", "c_1"]
    assert data.score.names == ["a_7", "a_8"]


# A whole run


def test_a_run_leaves_a_record_of_each_row_and_what_is_drawn_from_them(whole: Path) -> None:
    records = {name: record_of(whole, name) for name in ROWS}
    for name, record in records.items():
        assert record["seed"] == 0
        assert record["command"] == (
            "python bench/ablation.py --config lite0 --set model_options.backbone=" + TINY + " "
            "--set steps=2 --set batch_size=2 --set crop=33 --set warmup=0 --set "
            f"'validation_scales=[0.5]' --set validate_every=1 --set save_every=1 --rows {name} "
            "--seeds 0"
        )
        assert record["recipe"]["data"]["root"] == record["recipe"]["data"]["root"].split("/")[-1]
        assert (record["scores"]["crf"] is None) == (record["crf"] is None)
        assert len(record["trimap"]["network"]["miou"]) == 2
        work = whole / "work" / "ablation-lite0"
        assert (work / f"{name}-0-scored.safetensors").is_file()
        assert not (work / f"{name}-0.state").exists()
    assert records["stride16"]["training"]["curve"]["step"] == [1, 2]
    assert "miou" not in records["end_to_end"]["training"]["curve"]
    assert records["crf"]["tuning"]["pictures"] == 3
    assert records["crf"]["crf"]["bilateral_sigma_xy"] == 8
    assert records["further"]["crf"] == records["crf"]["crf"]
    learned = records["end_to_end"]["crf"]
    assert learned["bilateral_sigma_xy"] == pytest.approx(8)
    assert learned["compatibility"] is not None
    folder = whole / "records" / "ablation-lite0"
    table = (folder / "table.md").read_text()
    assert all(f"| {row.title} | " in table for row in ROWS.values())
    assert "| ASPP-L, over: LargeFOV | " in table
    assert "<svg" in (folder / "trimap.svg").read_text()
    with Image.open(whole / "work" / "ablation-lite0" / "pictures.png") as sheet:
        assert sheet.height == (2 + len(ROWS)) * 184


def test_scores_are_of_the_weights_after_the_last_step_not_of_the_best(whole: Path) -> None:
    records = [record_of(whole, name) for name in ROWS]
    trained = [each for each in records if "miou" in each.get("training", {}).get("curve", {})]
    curves = [each["training"]["curve"]["miou"] for each in trained]
    assert any(curve[0] > curve[-1] for curve in curves), "no row has better weights to mistake"
    for record, curve in zip(trained, curves, strict=True):
        assert round(record["scores"]["network"]["miou"], 4) == curve[-1]


@pytest.mark.parametrize("row", ["msc", "end_to_end"])
def test_deeplab_evaluate_gives_the_same_scores(
    row: str, whole: Path, camvid: Path, tmp_path: Path
) -> None:
    weights = whole / "work" / "ablation-lite0" / f"{row}-0-scored.safetensors"
    assert ("crf" in read_metadata(weights)) is (row == "end_to_end")
    given = ["--weights", weights, "--data", "camvid", "--root", camvid, "--scales", "0.5"]
    given += ["--no-crf"] if row == "msc" else []
    done("evaluate", *given, "--split", "val", "--out", tmp_path / "scores.json")
    found, record = json.loads((tmp_path / "scores.json").read_text()), record_of(whole, row)
    for scores in ("network", "crf"):
        assert found[scores] == record["scores"][scores]


def test_a_row_that_is_there_is_not_made_again_nor_taken_for_another(
    run: Callable[..., int], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((whole / "records" / "ablation-lite0").glob("*.json"))
    before = [path.stat().st_mtime_ns for path in files]
    assert run(whole, "--seeds", "0") == 2
    assert "stride32-0.json: is there; go on with --resume" in capsys.readouterr().err
    assert run(whole, "--seeds", "0", "--resume") == 0
    assert run(whole, "--seeds", "0", "--resume", "--set", "steps=3") == 2
    assert "of another recipe: steps 2 then, 3 now; give the same, or" in capsys.readouterr().err
    imagenet = ["--rows", "msc", "--seeds", "0", "--resume", "--set", "weights=elsewhere/w.pth"]
    assert run(whole, *imagenet) == 2
    assert "of another recipe: weights '' then, 'w.pth' now" in capsys.readouterr().err
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_run_that_was_killed_goes_on_to_the_same_scores(
    run: Callable[..., int], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    train_step = trainer.Trainer.train_step

    def killed(self: Any, *args: Any) -> None:
        if self.step == 1:
            raise Killed
        train_step(self, *args)

    rows = ["--rows", "largefov", "--seeds", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", killed)
        with pytest.raises(Killed):
            run(tmp_path, *rows)
    assert not list((tmp_path / "records").rglob("*.json"))
    begun: list[int] = []
    monkeypatch.setattr(
        trainer.Trainer,
        "train_step",
        lambda self, *args: (begun.append(self.step), train_step(self, *args)),
    )
    assert run(tmp_path, *rows, "--resume") == 0
    assert begun == [1]
    record = record_of(tmp_path, "largefov")
    assert record["scores"] == record_of(whole, "largefov")["scores"]
    assert record["training"]["curve"] == record_of(whole, "largefov")["training"]["curve"]


def test_a_signal_ends_the_command_with_its_number(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = SimpleNamespace(interrupted=True, signal=int(signal.SIGTERM))
    monkeypatch.setattr(ablation_run, "train", lambda *_, **__: stopped)
    assert run(tmp_path, "--rows", "stride32", "--seeds", "0") == 128 + signal.SIGTERM
    assert not list((tmp_path / "records").rglob("*.json"))


# What is refused and what is planned


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--rows", "crf", "--seeds", "1"], "pretrained-1-scored.safetensors: no such file, and c"),
        (["--rows", "aspp"], "--rows must be some of stride32, .*, not aspp"),
        (["--seeds", "0,x"], "--seeds must be numbers with commas, such as 0,1, not 0,x"),
        (["--set", "stepz=3"], "stepz: unknown key"),
        (["--set", "steps"], "--set steps must be KEY=VALUE"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(
    given: Sequence[str],
    said: str,
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tmp_path, *given) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert re.search(said, last)


def test_the_plan_says_what_each_row_takes_and_makes_nothing(
    run: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ablation, "_best_of_two", lambda _: 18.0)
    assert run(tmp_path, "--plan", "--rows", "stride16,crf_plain", "--seeds", "0,1") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # two samples a step; two validations of two pictures and a scoring, which is all of the CRF's
    seconds = [2 * (2 * 18 + 3 * 2 * 18), 2 * 2 * 18]
    assert lines[1] == ["stride16", "2", "2", "18.00", f"{seconds[0] / 3600:.2f}"]
    assert lines[2] == ["crf_plain", "2", "-", "0.00", f"{seconds[1] / 3600:.2f}"]
    assert lines[3] == ["all", f"{sum(seconds) / 3600:.1f}"]
    assert not list(tmp_path.iterdir())


# The table and the pictures


@pytest.mark.parametrize(
    ("gains", "theirs", "sign"),
    [
        ((), 1.0, ""),
        ((1.0,), None, ""),
        ((0.5,), 1.0, "as the papers', of one seed"),
        ((-0.5,), 1.0, "**not** the papers', of one seed"),
        ((2.0, 3.0, 2.5), 1.0, "as the papers'"),
        ((-2.0, -3.0, -2.5), 1.0, "**not** the papers'"),
        ((3.0, -2.0, 0.5), 1.0, "as the papers', but within its spread"),
    ],
)
def test_a_sign_is_told_as_far_as_the_seeds_tell_it(
    gains: tuple[float, ...], theirs: float | None, sign: str
) -> None:
    paper = None if theirs is None else Paper("aspp_s", "", theirs, "VGG-16")
    assert Step(ROWS["aspp_s"], ROWS["largefov"], gains, paper).sign == sign


def test_gains_are_of_the_seeds_that_both_rows_have(tmp_path: Path) -> None:
    def write(row: str, seed: int, miou: float) -> None:
        scores = {"network": {"miou": miou, "band_miou": 0.2}, "crf": None}
        curve = {"around": "boundary", "widths": [1], "miou": [miou], "pixel_accuracy": [0.5]}
        record = {"scores": scores, "crf": None, "trimap": {"network": curve}}
        record |= {"recipe": {"model_options": {"output_stride": 16}}}
        (tmp_path / f"{row}-{seed}.json").write_text(json.dumps(record))

    for seed, miou in enumerate((0.40, 0.42, 0.44)):
        write("largefov", seed, miou)
    for seed, miou in ((0, 0.41), (2, 0.47)):
        write("aspp_s", seed, miou)
    records = Records(tmp_path, PLANS["lite0"], (), 1)
    steps = {(step.row.name, step.after.name): step for step in records.steps()}
    assert steps["aspp_s", "largefov"].gains == pytest.approx((1.0, 3.0))
    assert steps["aspp_l", "aspp_s"].gains == ()
    table = records.table()
    assert "| LargeFOV | 16 | 3 | 42.00 ± 2.00 | 20.00 ± 0.00 | - |" in table
    assert "| ASPP-S, over: LargeFOV | +2.00 ± 1.41 | +1.22 (VGG-16) | as the papers' |" in table
    assert "over: ASPP-S" not in table
    assert records.curves()["LargeFOV"].miou == pytest.approx((0.42,))


def test_thin_parts_are_what_a_square_does_not_fit_into(camvid: Path) -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 8:10] = 1  # a pole
    labels[5:15, 15:25] = 2
    labels[:2, 28:] = 255
    thin = thin_parts(labels, 3).numpy()
    assert thin[:, 8:10].all()
    assert not thin[labels == 2].any()
    assert not thin[labels == 255].any()
    shown = choose_pictures(open_dataset("camvid", camvid, "val"))
    assert [one.index for one in shown] == [0, 1]
    for one in shown:
        assert 0 <= one.rows[0] < one.rows[1] <= SIDE
        assert 0 <= one.columns[0] < one.columns[1] <= SIDE
