"""The papers' ablation on real street scenes: one architecture, a row for each thing added.

    python bench/ablation.py --plan                # rows, steps, time: measured, nothing made
    python bench/ablation.py --resume              # all rows; again after a stop or a kill
    python bench/ablation.py --resume --rows stride32,stride16 --seeds 0,1
    python bench/ablation.py --config full --weights resnet101.caffemodel      # on a GPU

`ablation_rows.py` has the rows. Data are CamVid's train and val; of train a tenth, the last
pictures of each sequence, is kept from training, and the CRF is tuned on it. Scores are of the
weights after the last step, not of the best ones on val, at full size: mIoU over all pixels and in
bands around boundaries, of several seeds their mean and spread.

Files: records/ablation-CONFIG/ROW-SEED.json with scores, curves and seconds, written whole when a
row is done, table.md and trimap.svg drawn from all records that are there; in --work the weights
(ROW-SEED-scored.safetensors is what was scored: `deeplab evaluate --data camvid --split val`, of
lite0 with --scales 0.5, gives the same figures), what a run needs to go on, and pictures.png:
photographs, truth and predictions, thin parts enlarged.

The tuning pictures end the drives that train has, and the longest of these goes on in val: a tuned
CRF's gain is that of the same streets.

The plan, for two cores in eight hours, by what --plan measures. A step of 8 crops at stride 16
takes twice as long as at 32, at stride 8 four times as long as at 16: so the heads are compared at
stride 16, with three seeds, and what takes more has one: stride 8, MSC, and what follows. 1400
steps are 34 epochs, of which random weights learn the classes that fill pictures, and hardly the
rare ones. All rows have as many, which favours what learns fast over what keeps from learning by
heart, as random scales do: a sign that is not the papers' may be that of the budget, and is put to
the test by more steps, or by starting all rows from ImageNet, as the papers do:

    python bench/ablation.py --rows aspp_l,augmented --set steps=4000 --name longer
    python bench/ablation.py --rows largefov,aspp_l --set weights=FILE --name imagenet

One thread of torch a process is the default, since two wait for each other in every layer. So start
one process with --seeds 0 and another with --seeds 1,2, which take about as long; `timeout 40m`
stops one after a step, with its state on disk.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from ablation_pictures import choose_pictures, write_pictures
from ablation_records import Records
from ablation_rows import PLANS, Plan, Row, config_of
from ablation_run import FOLDS, ROUNDS, SPACE, Ablation, Data, Stopped
from report import RECORDS

from deeplab.cli.shared.options import key_value
from deeplab.crf_settings import CRFSettings
from deeplab.distributed import processes
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import evaluate
from deeplab.model import build
from deeplab.training import TrainConfig
from deeplab.training.recipe import Settings, one_setting
from deeplab.training.step import TrainStep
from deeplab.weights.portable import without_folders

ROOT = Path(__file__).resolve().parent.parent
CAMVID = ROOT.parent / "shared" / "data" / "camvid"


def plan_table(ablation: Ablation, wanted: Sequence[tuple[Row, int]]) -> str:
    """Rows, seeds, steps and the hours that they take (of a core, or a GPU), measured here."""
    lines, total = ["row           seeds  steps  seconds a step  hours"], 0.0
    for row, group in itertools.groupby(wanted, key=lambda pair: pair[0]):
        seeds = [seed for _, seed in group]
        config = ablation.config(row.name, seeds[0])
        steps, each, seconds = 0, 0.0, _seconds_of_scoring(ablation, config, row)
        if row.kind != "crf":
            steps, each = config.steps, _seconds_of_step(config, len(ablation.data.learn.classes))
            seconds += steps * each
        elif row.name == "crf":
            settings = len(SPACE.grid()) + ROUNDS * 26 * (1 + FOLDS)  # at most
            seconds += settings * len(ablation.data.tune) * _seconds_of_crf(ablation)
        hours = len(seeds) * seconds / 3600
        total += hours
        numbers = f"{len(seeds):5} {steps or '-':>6} {each:15.2f} {hours:6.2f}"
        lines.append(f"{row.name:13} {numbers}")
    lines.append(f"all {total:44.1f}")
    return "\n".join(lines)


def _seconds_of_step(config: TrainConfig, classes: int) -> float:
    layer = CRFSettings().layer(classes, learnable=True) if config.crf else None
    model = build(config.model, classes, crf=layer, **config.model_options)
    pictures = min(2, config.batch_size)
    image = torch.randint(0, 256, (pictures, 3, config.crop, config.crop), dtype=torch.uint8)
    labels = torch.randint(0, classes, (pictures, config.crop, config.crop), dtype=torch.uint8)
    with processes(config.device) as group:
        rehearse = TrainStep(model, config, group, (), None).rehearsal(image, labels)
        return _best_of_two(rehearse) * config.batch_size / pictures


def _seconds_of_scoring(ablation: Ablation, config: TrainConfig, row: Row) -> float:
    """Of the validations, each as long as the last scoring at most."""
    data = ablation.data.score
    model = build(config.model, len(data.classes), **config.model_options).eval()
    layer = CRFSettings().layer(len(data.classes)) if row.kind != "train" else None
    one = [data[0]]
    each = _best_of_two(lambda: evaluate(model, one, layer, scales=config.validation_scales))
    times = 1 if row.kind == "crf" else 1 + -(-config.steps // config.validate_every)
    return times * each * len(data)


def _seconds_of_crf(ablation: Ablation) -> float:
    image, _ = ablation.data.tune[0]
    levels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    classes = len(ablation.data.tune.classes)
    layer, logits = CRFSettings().layer(classes), torch.randn(1, classes, *image.shape[:2])
    return _best_of_two(lambda: layer(logits, levels))


def _best_of_two(act: Callable[[], object]) -> float:
    """Processor seconds, whoever else the machine works for; on a GPU those of the wall's clock."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    taken = []
    for _ in range(2):
        start = clock()
        act()
        taken.append(clock() - start)
    return min(taken)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", choices=PLANS, default="lite0", help="the architecture (default: lite0)")
    add("--rows", metavar="ROW,...", help="default: all, which the head of ablation_rows.py lists")
    add("--seeds", metavar="N,...", help="with --rows of each of them; else those of the plan")
    add("--resume", action="store_true", help="go on with what is there")
    add("--plan", action="store_true", help="print rows, steps and time, and make nothing")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all rows")
    add("--weights", default="", metavar="FILE|NAME", help="what the row pretrained starts from")
    add("--root", type=Path, default=CAMVID, metavar="DIR", help="CamVid")
    add("--threads", type=int, default=1, metavar="N", help="of torch (default: 1)")
    add("--name", default="", help="of an experiment beside the table, whose files it keeps apart")
    add("--work", type=Path, default=ROOT / "out", metavar="DIR", help="weights (default: out)")
    add("--out", type=Path, default=RECORDS, metavar="DIR", help="records")
    return parser


def _wanted(plan: Plan, rows: str | None, seeds: str | None) -> list[tuple[Row, int]]:
    """The rows and seeds to make, in order; InputError for names and numbers that are none."""
    known = plan.rows()
    names = list(known) if rows is None else rows.split(",")
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"--rows must be some of {', '.join(known)}, not {unknown[0]}")
    if seeds is not None and not all(part.isdigit() for part in seeds.split(",")):
        raise InputError(f"--seeds must be numbers with commas, such as 0,1, not {seeds}")
    numbers = None if seeds is None else [int(part) for part in seeds.split(",")]
    return [
        (known[name], seed)
        for name in known
        if name in names
        for seed in (known[name].seeds if numbers is None else numbers)
        if rows is not None or seed in known[name].seeds
    ]


def _settings(texts: Sequence[str]) -> Settings:
    given: Settings = {}
    for text in texts:
        given |= one_setting(*key_value("--set", text, "steps=3000"))
    return given


def main(arguments: Sequence[str]) -> int:
    """Make the rows, and draw what is there; 128 and the signal's number where one stopped it."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print("stopped; the same command with --resume goes on", file=sys.stderr)
        return 128 + stop.signal


def _run(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    plan = PLANS[options.config]
    wanted = _wanted(plan, options.rows, options.seeds)
    name = "-".join(filter(None, ("ablation", options.config, options.name)))
    given, weights = _settings(options.set), options.weights or plan.own_weights()
    if not weights and any(row.name == "pretrained" for row, _ in wanted):
        raise InputError(f"--weights must name what {options.config} starts from, for pretrained")
    first = config_of(plan, "stride32", 0, given, options.root, weights)
    data = Data.of(options.root, first)
    shown = () if options.plan else choose_pictures(data.score)
    command = ["bench/ablation.py", "--config", options.config]
    command += ["--name", options.name] if options.name else []
    for key, (value, _) in without_folders({"recipe": given})["recipe"].items():
        command += ["--set", f"{key}={value}"]
    records = Records(options.out / name, plan, tuple(command), options.threads)
    work = options.work / name
    ablation = Ablation(plan, given, options.root, weights, work, records, shown, data)
    if options.plan:
        print(plan_table(ablation, wanted))
        return 0
    made = [(row, seed) for row, seed in wanted if not ablation.needed(row, seed)]
    if made and not options.resume:
        row, seed = made[0]
        raise InputError(
            f"{records.path(row, seed)}: is there; go on with --resume, or give --name"
        )
    work.mkdir(parents=True, exist_ok=True)
    try:
        for row, seed in wanted:
            if (row, seed) not in made:
                ablation.make(row, seed)
    finally:  # of what is done, also where a signal has stopped the rest
        if records.curves():
            records.draw()
            print(records.table())
            write_pictures(work / "pictures.png", data.score, shown, _predictions(plan, work))
    return 0


def _predictions(plan: Plan, work: Path) -> dict[str, Path]:
    """The label maps of each row that has them, of its first seed, under the row's title."""
    found = {}
    for row in plan.rows().values():
        files = [work / f"{row.name}-{seed}.npz" for seed in row.seeds]
        if there := [path for path in files if path.is_file()]:
            found[row.title] = there[0]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
