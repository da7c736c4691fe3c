"""`deeplab data list | check | import`: the known data sets, their faults, others' annotations."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deeplab.cli import data_import
from deeplab.cli.shared import options
from deeplab.cli.shared.groups import takes_options
from deeplab.cli.shared.options import option
from deeplab.data import outputs
from deeplab.data.conversions import counted
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.data.datasets.check import Finding, Report

app = typer.Typer(
    help="Data sets: which are known and how they have to lie, what is wrong with the files, and "
    "how annotations of other tools become one.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

T = TypeVar("T")

_SHOWN = 20
_EXAMPLES = 3
_FINDINGS = 1


@app.command("list")
def list_sets(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Tell of these in full.", show_default=False),
    ] = None,
) -> None:
    """The data sets that can be read; with names, where they come from and how they have to lie.

    Nothing is downloaded.

    **Examples**

    ```text
    deeplab data list
    deeplab data list voc2012 folder
    ```
    """
    from deeplab.data.datasets import DATASETS

    for name in names or ():
        if name not in DATASETS:
            raise InputError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    if not names:
        table = Table(title="Data sets", caption="deeplab data list NAME tells the layout")
        for column in ("name", "what", "classes", "licence"):
            table.add_column(column, overflow="fold")
        for name, info in DATASETS.items():
            table.add_row(name, info.title, info.classes, info.licence)
        Console().print(table)
    for name in names or ():
        info = DATASETS[name]
        facts = {
            "classes": info.classes,
            "ignored labels": info.ignored,
            "usual splits": ", ".join(info.usual),
            "from": info.homepage,
            "licence": info.licence,
        }
        typer.echo(f"{name}: {info.title}")
        for what, fact in facts.items():
            typer.echo(f"  {what:<16}{fact}")
        typer.echo("  layout")
        for line in info.layout.splitlines():
            typer.echo(f"    {line}")
        typer.echo()


@app.command()
@takes_options
def check(
    *,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="As deeplab data list has it; or --data.", show_default=False
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Argument(
            metavar="[ROOT]", help="The folder where the set lies; or --root.", show_default=False
        ),
    ] = None,
    data: options.DataOptions,
    split: Annotated[
        list[str] | None,
        options.split_option("A part of it; may be repeated.", shown="the usual ones"),
    ] = None,
    json_file: Annotated[
        Path | None, option("FILE", "Write all of it there.", "--json", shown=False)
    ] = None,
    workers: Annotated[
        int | None, option("N", "Processes that read.", shown="as many as pay off")
    ] = None,
) -> None:
    """Read every picture and label map of a data set; name what is wrong, count what is there.

    Looks for missing and unreadable files, sizes that differ, tiny pictures, pictures of nearly no
    contrast, label values that are no class, names listed twice, label maps without a picture,
    pictures in training and validation both, and labels in which fewer than two classes occur. Then
    a table of the classes, a line that names those without a pixel, the picture sizes, mean and
    deviation of each band as a recipe's model_options take them, and what was converted in reading
    (EXIF turns, 16 bits, alpha).

    Exit status: 0 nothing to mend, 1 findings, 2 it could not be checked.

    **Examples**

    ```text
    deeplab data check voc2012 VOCdevkit/VOC2012 --split trainaug --split val
    deeplab data check voc2012 VOC2012 --split trainaug --data-option sbd=benchmark_RELEASE
    deeplab data check camvid camvid --json camvid.json
    deeplab data check --data folder --root mine --split train
    deeplab data check folder mine --data-option ignore=0 --data-option labels=masks
    deeplab data check folder mine --data-option bands=6
    ```
    """
    name, root = _one("NAME", name, data.data_name), _one("ROOT", root, data.data_root)
    if name is None:
        raise InputError(
            "NAME must be a data set of `deeplab data list`, as in: deeplab data check folder mine"
        )
    check_data(name, root, data.options, split or (), json_file, workers)


def _one(what: str, argument: T | None, given: T | None) -> T | None:
    """What stands as an argument or as an option; InputError where it stands twice."""
    if argument is not None and given is not None:
        option_name = {"NAME": "--data", "ROOT": "--root"}[what]
        raise InputError(
            f"{option_name} {given}: {what} {argument} says it too; leave one of them out"
        )
    return given if argument is None else argument


def check_data(
    name: str,
    root: Path | None,
    chosen: dict[str, Any],
    split: Sequence[str] = (),
    json_file: Path | None = None,
    workers: int | None = None,
) -> None:
    """`deeplab data check`; chosen: options of the data set. Exits with 1 on findings."""
    from deeplab.data.datasets import DATASETS, available_splits, open_dataset
    from deeplab.data.datasets.check import check as run
    from deeplab.data.datasets.check import shared_pictures
    from deeplab.evaluation.evaluate import progress_bar

    if json_file is not None:
        outputs.check_writable_file(json_file)
    found = available_splits(name, root, **chosen)
    splits = list(split) or [s for s in DATASETS[name].usual if s in found] or found
    if not splits:
        raise InputError(
            f"{root}: nothing of {name} there; `deeplab data list {name}` tells the layout"
        )
    data = {s: open_dataset(name, root, s, **chosen) for s in dict.fromkeys(splits)}
    reports = {}
    with progress_bar(sys.stderr.isatty()) as bar:
        for s, pictures in data.items():
            task = bar.add_task(escape(s), total=len(pictures))
            reports[s] = run(pictures, workers, partial(bar.advance, task))
    shared = shared_pictures(data)
    findings = [f for report in reports.values() for f in report.findings] + shared
    _print_findings(findings)
    for s, report in reports.items():
        _print_contents(report, s)
    if json_file is not None:
        content = {
            "dataset": name,
            "root": None if root is None else str(root),
            "options": chosen,
            "splits": {s: report.as_dict() for s, report in reports.items()},
            "shared": [finding.message for finding in shared],
        }
        outputs.write_text(json_file, json.dumps(content, indent=2) + "\n")
    pictures_read = _count(sum(report.pictures for report in reports.values()), "picture")
    summary = _count(len(findings), "finding") if findings else "nothing to mend"
    typer.echo(f"{name}, {', '.join(reports)}: {pictures_read}, {summary}")
    if findings:
        raise typer.Exit(_FINDINGS)


app.command("import")(data_import.import_data)


def _print_findings(findings: list[Finding]) -> None:
    from deeplab.data.datasets.check import KINDS

    for kind, meaning in KINDS.items():
        lines = [finding.message for finding in findings if finding.kind == kind]
        if not lines:
            continue
        typer.echo(f"{meaning} ({len(lines)}):")
        for line in lines[:_SHOWN]:
            typer.echo(f"  {line}")
        if len(lines) > _SHOWN:
            typer.echo(f"  and {len(lines) - _SHOWN} more; --json FILE has them all")
        typer.echo()


def _print_contents(report: Report, split: str) -> None:
    """The classes of a split by pixels and pictures, and its sizes."""
    table = Table(title=f"{split}: {_count(report.pictures, 'picture')}")
    table.add_column("class")
    for column in ("pixels", "share", "pictures"):
        table.add_column(column, justify="right")
    labelled = sum(report.pixels)
    every = labelled + report.others + report.ignored + report.unknown
    whole = every / len(report.classes) if report.masks else labelled
    for name, pixels, images in zip(report.classes, report.pixels, report.images, strict=True):
        share = f"{100 * pixels / whole:.2f}%" if pixels else "-"
        table.add_row(name, f"{pixels:,}", share, f"{images:,}")
    table.add_section()
    rows = {"ignored": report.ignored} | ({"unknown": report.unknown} if report.unknown else {})
    for what, pixels in rows.items():
        share = f"{100 * pixels / every:.2f}% of all" if pixels else "-"
        table.add_row(what, f"{pixels:,}", share, "")
    Console(markup=False).print(table)  # a class may be called [/b]
    if report.unlabelled:
        typer.echo(f"no pixel counts in {_count(report.unlabelled, 'picture')}")
    counts = report.labels()
    if counts.absent and not counts.defect():  # which is a finding
        typer.echo(counts.note())
    if report.sizes:
        widths, heights = zip(*report.sizes.elements(), strict=True)
        (width, height), count = report.sizes.most_common(1)[0]
        typer.echo(
            f"sizes: width {min(widths)} to {max(widths)}, height {min(heights)} to "
            f"{max(heights)}; {width} x {height} in {_count(count, 'picture')}"
        )
    for what, numbers in zip(("mean", "deviation"), zip(*report.bands, strict=True), strict=False):
        typer.echo(f"{what} = [{', '.join(f'{number:.6g}' for number in numbers)}]")
    for line in counted(report.conversions, examples=_EXAMPLES):
        typer.echo(line)
    typer.echo()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
