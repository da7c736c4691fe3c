"""`deeplab weights list | show | download | path | verify`: weights by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.weights.registry import Named

app = typer.Typer(
    help="Weights that have a name: which there are, and their files on this machine.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="As deeplab weights list has it.")]
_DIFFERENT = 1


@app.command("list")
def list_weights() -> None:
    """All named weights, and which of them are here, on this machine."""
    from deeplab.weights import registry

    typer.echo(f"{registry.SCENES}\n    generated scenes; MIT; brought along")
    for name, row in registry.table().items():
        facts = [row.title, row.size, row.licence, *["here"] * row.path.is_file()]
        typer.echo(f"{name}\n    {'; '.join(facts)}")


@app.command()
def show(name: Name) -> None:
    """What is known of named weights: source, hash, licence, accuracy, CRF settings."""
    from deeplab.weights import registry

    row = registry.named(name)
    facts = {
        "from": row.url + (f", {row.member} in it" if row.member else ""),
        "size": row.size,
        "SHA-256": _hash(row),
        "licence": row.licence,
        "accuracy": row.score,
        "model": row.model or f"a body alone, for deeplab train --weights: {row.backbone}",
        "classes": row.classes or "none",
        "CRF": ", ".join(f"{key} {value:g}" for key, value in row.crf.items()) or "the default",
        "here": str(row.path) if row.path.is_file() else f"no; it would lie at {row.path}",
    }
    typer.echo(f"{name}: {row.title}")
    for what, fact in facts.items():
        typer.echo(f"  {what:<10}{fact}")


def _hash(row: Named) -> str:
    if not row.sha256:
        return "the source publishes none"
    return f"begins with {row.sha256}" + (", of the archive" if row.member else "")


@app.command()
def download(name: Name) -> None:
    """Fetch named weights, unless they are here, and print where their file lies."""
    from deeplab.weights import registry

    typer.echo(registry.path_of(registry.named(name).name))


@app.command()
def path(name: Name) -> None:
    """Print where the file of named weights lies; status 2 where it is not here."""
    from deeplab.weights import registry

    row = registry.named(name)
    if not row.path.is_file():
        raise InputError(f"{row.path}: is not there; fetch it with deeplab weights download {name}")
    typer.echo(row.path)


@app.command()
def verify() -> None:
    """Compare the files that are here with the hashes of their downloads; status 1 if one differs.

    A file that was put there by hand has none to compare with, unless its source publishes one.
    """
    from deeplab.weights import download, registry

    wrong = 0
    for row in registry.table().values():
        if not row.path.is_file():
            continue
        known = download.recorded(row.path) or ("" if row.member else row.sha256)
        if not known:
            said = "no hash to compare with"
        elif download.of_file(row.path).startswith(known):
            said = "as it was downloaded"
        else:
            said, wrong = "DIFFERENT: delete it and fetch it again", wrong + 1
        typer.echo(f"{row.path}  {said}")
    if wrong:
        raise typer.Exit(_DIFFERENT)
