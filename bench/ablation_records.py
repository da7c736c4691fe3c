"""What the ablation keeps: a record for each row and seed, and the table and curves from them."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation_rows import PAPERS, Paper, Plan, Row
from report import new_record, write_whole

from deeplab.errors import InputError
from deeplab.evaluation.evaluate import Evaluation
from deeplab.evaluation.plots import plot_trimap
from deeplab.evaluation.trimap import TrimapCurve
from deeplab.training.config import FREE_ON_RESUME, TrainConfig
from deeplab.training.logs import read_rows
from deeplab.training.recipe import differences
from deeplab.weights.portable import without_folders

Record = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """What a row is above another one: points of mIoU, one for each seed that both have."""

    row: Row
    after: Row
    gains: tuple[float, ...]
    paper: Paper | None

    @property
    def sign(self) -> str:
        """Whether it has the papers' sign, as far as the seeds tell."""
        if not self.gains or self.paper is None:
            return ""
        mean, spread = mean_and_spread(self.gains)
        said = "as the papers'" if mean * self.paper.gain > 0 else "**not** the papers'"
        if len(self.gains) == 1:
            return f"{said}, of one seed"
        return f"{said}, but within its spread" if abs(mean) <= spread else said


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, 0 of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Records:
    """The records of a plan in a folder: ROW-SEED.json.

    command: how one is made, without its row and seed, and without the folders of a machine.
    """

    folder: Path
    plan: Plan
    command: tuple[str, ...]
    threads: int

    def path(self, row: Row | str, seed: int) -> Path:
        return self.folder / f"{row if isinstance(row, str) else row.name}-{seed}.json"

    def read(self, row: Row | str, seed: int) -> Record | None:
        """The record; None where there is none. InputError where it is not one."""
        path = self.path(row, seed)
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(record, dict) or "scores" not in record:
                raise ValueError("no scores in it")
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: not a record of the ablation ({error}); remove it"
            ) from error
        return record

    def has(self, row: Row, seed: int, config: TrainConfig) -> bool:
        """Whether there is a record of this recipe; InputError where it is of another one."""
        record = self.read(row, seed)
        if record is None:
            return False
        now = dataclasses.replace(config, weights=Path(config.weights).name)
        if other := differences(record["recipe"], now, FREE_ON_RESUME - {"weights"}):
            raise InputError(
                f"{self.path(row, seed)}: of another recipe: {'; '.join(other)}; give the same, or "
                "--name for an experiment of its own"
            )
        return True

    def write(
        self, row: Row, seed: int, config: TrainConfig, result: Evaluation, found: Record
    ) -> None:
        """Write a record, whole: what was found, after the row's name and where it was made."""
        command = [*self.command, "--rows", row.name, "--seeds", str(seed)]
        made = new_record(command, [row.name], self.threads)
        kept = ("date", "command", "threads", "commit", "versions", "hardware")
        recipe = without_folders({"recipe": dataclasses.asdict(config)})["recipe"]
        scores = result.as_dict()
        record = {
            "row": row.name,
            "title": row.title,
            "after": row.after,
            "seed": seed,
            **{key: made[key] for key in kept},
            "recipe": recipe,
            "scores": {key: scores[key] for key in ("images", "band", "network", "crf")},
            "trimap": scores["trimap"],
            "confusion": scores["confusion"],
            **found,
        }
        lines = (f'"{key}": {json.dumps(value)}' for key, value in record.items())
        write_whole(self.path(row, seed), "{\n" + ",\n".join(lines) + "\n}\n")

    def of(self, row: Row) -> dict[int, Record]:
        """The records of a row that are there, by seed."""
        files = self.folder.glob(f"{row.name}-*.json")
        seeds = sorted(int(s) for path in files if (s := path.stem.rpartition("-")[2]).isdigit())
        return {seed: record for seed in seeds if (record := self.read(row, seed)) is not None}

    def steps(self) -> Iterator[Step]:
        """Each row over the one before it, and what else the papers compare."""
        rows = self.plan.rows()
        for row in rows.values():
            theirs = {paper.after or row.after: paper for paper in PAPERS if paper.row == row.name}
            for after in dict.fromkeys(filter(None, (row.after, *theirs))):
                ours, others = scores(self.of(row)), scores(self.of(rows[after]))
                gains = tuple(ours[seed] - others[seed] for seed in ours if seed in others)
                yield Step(row, rows[after], gains, theirs.get(after))

    def table(self) -> str:
        """All that is there, as Markdown."""
        lines = [
            "| row | stride | seeds | mIoU | within 4 pixels | training, minutes |",
            "|---|---|---|---|---|---|",
        ]
        for row in self.plan.rows().values():
            found = self.of(row)
            if not found:
                continue
            records = list(found.values())
            stride = records[0]["recipe"]["model_options"]["output_stride"]
            band = [100 * r["band_miou"] for r in map(final, records) if r["band_miou"] is not None]
            seconds = [r["training"]["seconds"] for r in records if "training" in r]
            minutes = f"{statistics.fmean(seconds) / 60:.0f}" if seconds else "-"
            figures = f"{_shown(list(scores(found).values()))} | {_shown(band)} | {minutes}"
            lines.append(f"| {row.title} | {stride} | {len(found)} | {figures} |")
        known = [step for step in self.steps() if step.gains]
        if known:
            lines += ["", "| step | gain | the papers' | sign |", "|---|---|---|---|"]
        for step in known:
            paper = step.paper
            theirs = "-" if paper is None else f"{paper.gain:+.2f} ({paper.network})"
            name = f"{step.row.title}, over: {step.after.title}"
            lines.append(f"| {name} | {_shown(step.gains, '+')} | {theirs} | {step.sign or '-'} |")
        return "\n".join(lines) + "\n"

    def curves(self) -> dict[str, TrimapCurve]:
        """The trimap curve of each row, the mean over its seeds."""
        found = {}
        for row in self.plan.rows().values():
            curves = [
                record["trimap"]["network" if record["crf"] is None else "crf"]
                for record in self.of(row).values()
            ]
            if curves:
                means = [_mean([curve["miou"][k] for curve in curves]) for k in _widths(curves)]
                shown = [_mean([c["pixel_accuracy"][k] for c in curves]) for k in _widths(curves)]
                widths = tuple(curves[0]["widths"])
                found[row.title] = TrimapCurve("boundary", widths, tuple(means), tuple(shown))
        return found

    def draw(self) -> None:
        """Write table.md and trimap.svg."""
        write_whole(self.folder / "table.md", self.table())
        plot_trimap(self.folder / "trimap.svg", self.curves())


def final(record: Record) -> Record:
    """The scores of a row: of the CRF where it has one."""
    scores: Record = record["scores"]["network" if record["crf"] is None else "crf"]
    return scores


def scores(records: dict[int, Record]) -> dict[int, float]:
    """mIoU in points, by seed."""
    return {seed: 100 * final(record)["miou"] for seed, record in records.items()}


def train_seconds(log: Path, config: TrainConfig) -> float:
    """What the steps of a run took, of all its pieces, by its log."""
    seconds, before = 0.0, 0
    for row in read_rows(log):
        step = int(row["step"])
        if row["images_per_second"]:
            seconds += (step - before) * config.batch_size / float(row["images_per_second"])
        before = step
    return round(seconds, 1)


def curve_of(log: Path, config: TrainConfig) -> Record:
    """Loss and mIoU over the steps; of a CRF that learns at another size no mIoU."""
    rows = [row for row in read_rows(log) if row["miou"] or int(row["step"]) % 100 == 0]
    curve: Record = {
        "step": [int(row["step"]) for row in rows],
        "loss": [round(float(row["loss"]), 4) for row in rows],
    }
    if not config.crf:
        curve["miou"] = [round(float(row["miou"]), 4) if row["miou"] else None for row in rows]
    return curve


def _widths(curves: Sequence[Record]) -> range:
    return range(len(curves[0]["widths"]))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _shown(values: Sequence[float], sign: str = "") -> str:
    """Mean and spread of points."""
    if not values:
        return "-"
    mean, spread = mean_and_spread(values)
    return f"{mean:{sign}.2f}" + (f" ± {spread:.2f}" if len(values) > 1 else "")
