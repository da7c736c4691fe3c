"""The command line: `deeplab segment`, `refine`, `train` and so on, one module each.

Results and tables go to standard output; notes, progress and errors to standard error. Exit status:
0 done; 2 bad input, with one line that says what to mend and nothing half-written; 130 Ctrl-C.

Everything that computes is imported inside the commands, so that `--help` answers quickly.
"""

from __future__ import annotations

import io
import os
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deeplab.cli import (
    app as app_command,
)
from deeplab.cli import (
    convert,
    data,
    demo,
    evaluate,
    export,
    refine,
    segment,
    train,
    tune_crf,
    weights,
)
from deeplab.errors import InputError


class _Commands(TyperGroup):
    """Turns InputError into one line on standard error and status 2, Ctrl-C into status 130."""

    def invoke(self, ctx: Any) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A file's name may hold bytes that are no text, or letters that a terminal lacks.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except InputError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            typer.echo("Interrupted; every file written so far is complete.", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="deeplab",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point of the `deeplab` script."""
    app(prog_name="deeplab")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deeplab-triton {version('deeplab-triton')}, torch {version('torch')}")
        raise typer.Exit


@app.callback()
def _top(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Download nothing, as with DEEPLAB_OFFLINE=1.")
    ] = False,
) -> None:
    """Semantic segmentation with DeepLab v1/v2 and a dense CRF.

    **First steps**

    ```text
    deeplab demo                          see what it does, on generated scenes
    deeplab segment photo.jpg             label every pixel of a picture
    deeplab refine photo.jpg marks.png    spread scribbles over a photograph
    deeplab app                           paint scribbles on a page, see the result follow
    ```

    Every command explains itself: deeplab COMMAND --help
    """
    if offline:
        os.environ["DEEPLAB_OFFLINE"] = "1"


app.command()(segment.segment)
app.command()(refine.refine)
app.command(cls=train.ShowsRecipe)(train.train)
app.command()(evaluate.evaluate)
app.command()(tune_crf.tune_crf)
app.command()(export.export)
app.command()(convert.convert)
app.command()(demo.demo)
app.command("app")(app_command.app)
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
