"""`deeplab data import`: annotations of other tools as a data set of one's own."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from deeplab.cli.shared.options import option
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.data.imports import ImportReport

_NAMED = 5  # pictures in one line


def import_data(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="coco, labelme, yolo, voc, cvat, supervisely, ade20k or labelstudio.",
        ),
    ],
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="The folder or file of the annotations.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new folder.")],
    images: Annotated[
        Path | None,
        option("DIR", "Where the pictures lie, if not as the format has it.", shown=False),
    ] = None,
    classes: Annotated[
        Path | None,
        option(
            "FILE",
            "Which classes, in which order: a name a line, or a classes.toml.",
            shown="those of the annotations",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        option("NAME", "What has this label does not count (255); repeatable.", shown=False),
    ] = None,
    unlabelled: Annotated[
        str,
        option(
            "ignore|NAME",
            "Areas without a shape: ignore (255), or the name of their class, such as background; "
            "where the annotations have no such class it becomes the first.",
        ),
    ] = "ignore",
    crowds: Annotated[
        str,
        option(
            "ignore|unlabelled",
            "Crowds, as COCO marks them: ignore (255) where no single object lies, or leave them "
            "out, as if nothing were marked there.",
        ),
    ] = "ignore",
    order: Annotated[
        str,
        option(
            "largest|file",
            "Of shapes that overlap, the largest lies at the bottom, or the first of the file. "
            "Layers that the tool has (CVAT's z_order) come before either.",
        ),
    ] = "largest",
    split: Annotated[
        float | None,
        option(
            "SHARE",
            "Draw this share of the pictures by lot for training, the rest for validation.",
            shown="the splits that there are",
        ),
    ] = None,
    group: Annotated[
        str | None,
        option(
            "REGEX",
            "With --split: pictures in whose file name this finds the same stay together, such as "
            "'^[^_]+' for what comes before the first _; of a group in brackets, that alone.",
            shown=False,
        ),
    ] = None,
    seed: Annotated[int, option("N", "With --split: another number, another lot.")] = 0,
    link: Annotated[
        bool, typer.Option("--link/--copy", help="Link to the pictures, or copy them.")
    ] = False,
) -> None:
    """Turn annotations of another tool into a folder to train on.

    Draws every shape into label maps OUT/labels/*.png, puts the pictures into OUT/images and the
    class names and colours into OUT/classes.toml; splits become folders in both. Then it runs
    `deeplab data check` on the result. OUT appears when it is complete, or not at all.

    ```text
    coco         a JSON file of instances, or a folder of them
    labelme      a folder of LabelMe's JSON files; __ignore__ is ignored
    yolo         data.yaml with images/ and labels/; boxes are left out
    voc          SegmentationClass/*.png; CVAT's "Segmentation mask 1.1"
    cvat         annotations.xml of "CVAT for images 1.1"
    supervisely  a project folder with meta.json
    ade20k       ADE20K's scene parsing: 0 is unlabelled, classes from 1
    labelstudio  PNG files of brush labels beside the JSON export
    ```

    Exit status: 0 nothing to mend, 1 imported, but the check has findings, 2 not imported.

    **Examples**

    ```text
    deeplab data import labelme marked mine --unlabelled background --split 0.8
    deeplab data import coco instances_train.json mine --images photos --link
    deeplab data import yolo data.yaml mine --ignore void
    deeplab data import cvat export mine --split 0.9 --group '^(film\\d+)'
    deeplab train --data folder --root mine --weights resnet50_imagenet
    ```
    """
    from deeplab.cli.data import check_data
    from deeplab.data.imports import Settings, import_annotations
    from deeplab.evaluation.evaluate import progress_bar

    settings = Settings(
        images=images,
        classes=classes,
        ignore=tuple(ignore or ()),
        unlabelled=unlabelled,
        crowds=crowds,
        order=order,
        split=split,
        group=group,
        seed=seed,
        link=link,
    )
    with progress_bar(sys.stderr.isatty()) as bar:
        task = bar.add_task(kind, total=None)
        report = import_annotations(
            kind, source, out, settings, lambda total: bar.update(task, total=total, advance=1)
        )
    _print(report, out, unlabelled)
    try:
        check_data("folder", out, {})
    except InputError as error:
        raise InputError(f"{out} is imported, but: {error}") from error
    if {"train", "val"} <= report.pictures.keys():
        start = f"--data folder --root {shlex.quote(str(out))} --weights resnet50_imagenet"
        typer.echo(f"train on it with: deeplab train {start}")


def _print(report: ImportReport, out: Path, unlabelled: str) -> None:
    """The classes by shapes and pictures, what was left out, and what to do about it."""
    total = sum(report.pictures.values())
    table = Table(title=f"{out}: {total} {'picture' if total == 1 else 'pictures'} imported")
    table.add_column("class")
    table.add_column("shapes", justify="right")
    table.add_column("pictures", justify="right")
    ignored = sorted(set(report.shapes) - set(report.classes))
    for name in (*report.classes, *ignored):
        mark = " (ignored)" if name in ignored else ""
        shapes = f"{report.shapes[name]:,}" if report.shapes else "-"
        table.add_row(f"{name}{mark}", shapes, f"{report.images[name]:,}")
    Console(markup=False).print(table)
    if set(report.pictures) == {""}:
        typer.echo("no splits; --split 0.8 makes train and val")
    else:
        parts = [f"{name or 'in none'} {count}" for name, count in sorted(report.pictures.items())]
        typer.echo(f"splits: {', '.join(parts)}")
    if report.without:
        named = ", ".join(report.without[:_NAMED])
        more = len(report.without) - _NAMED
        typer.echo(
            f"nothing marked in {len(report.without)}: {named}"
            + (f" and {more} more" if more > 0 else "")
        )
    for what, count in sorted(report.dropped.items()):
        typer.echo(f"left out: {count} {what}")
    if report.cut:
        what = "shape that reaches" if report.cut == 1 else "shapes that reach"
        typer.echo(f"cut at the border: {report.cut} {what} beyond the picture")
    if unlabelled == "ignore" and sum(map(bool, map(report.images.get, report.classes))) < 2:
        typer.echo("areas without a shape are ignored; --unlabelled background makes them a class")
    for note in report.notes:
        typer.echo(f"Note: {note}", err=True)
    typer.echo()
