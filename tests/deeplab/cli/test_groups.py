"""Dataclasses of options: a command takes one, the command line has its fields."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from deeplab.cli.shared.groups import takes_options


@dataclass(frozen=True)
class Size:
    height: Annotated[int, typer.Option(metavar="PIXELS", help="How high.")]
    width: Annotated[int | None, typer.Option("--across", "-w", help="How wide.")] = None


def test_the_fields_of_a_dataclass_are_options_of_the_command() -> None:
    called = []

    @takes_options
    def draw(name: str, size: Size, twice: bool = False) -> None:
        """Draw it."""
        called.append((name, size, twice))

    app = typer.Typer()
    app.command()(draw)
    told = CliRunner().invoke(app, ["x", "--height", "3", "-w", "4", "--twice"])
    assert told.exit_code == 0, told.output
    assert CliRunner().invoke(app, ["y", "--height", "5"]).exit_code == 0
    assert called == [("x", Size(3, 4), True), ("y", Size(5), False)]
    missing = CliRunner().invoke(app, ["x"])
    assert (missing.exit_code, "--height" in missing.output) == (2, True)
    text = CliRunner().invoke(app, ["--help"]).output
    assert all(part in text for part in ("Draw it.", "PIXELS", "How high.", "--across"))


def test_two_options_of_one_name_are_refused_where_the_command_is_made() -> None:
    with pytest.raises(ValueError, match="duplicate parameter name: 'height'"):

        @takes_options
        def draw(size: Size, height: int = 3) -> None:
            """Draw it."""
