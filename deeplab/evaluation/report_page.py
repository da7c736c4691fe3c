"""The page of a report: HTML that needs no other file, since its pictures are within it."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deeplab.evaluation.evaluate import Evaluation

BAR = 80  # pixels of an IoU of 1


def page(
    title: str,
    result: Evaluation,
    about: Mapping[str, Any],
    matrix: np.ndarray,
    palette: np.ndarray,
    confusion: bytes,
    worst: Sequence[tuple[str, str, bytes]],
    ranked: int,
) -> str:
    """The whole page.

    about: the options by name, "weights" and "split" among them; matrix: the counts `[C, C]` of the
    final labels, rows true; palette: uint8 `[C, 3]`; confusion: the matrix as PNG; worst: the name
    of each picture, what is to be said of it, and its panel as JPEG, out of `ranked` pictures.
    """
    return _PAGE.format(
        title=html.escape(title),
        weights=html.escape(about["weights"]),
        split=html.escape(about["split"]),
        summary=_summary(result),
        bar=BAR,
        options=_options(about),
        classes=_classes(result, matrix, palette),
        confusion=_picture("png", confusion, "the confusion matrix"),
        heading=f"The {len(worst)} worst of {ranked} pictures",
        legend=_legend(list(result.network.iou), palette),
        figures="\n".join(_figure(*one) for one in worst),
    )


def _summary(result: Evaluation) -> str:
    """mIoU and its kin, before and after the CRF."""
    columns = [scores for scores in (result.network, result.crf) if scores is not None]
    rows: list[tuple[str, list[float | None]]] = [
        ("mIoU", [scores.miou for scores in columns]),
        (f"band mIoU, {result.band} pixels", [scores.band_miou for scores in columns]),
        ("pixel accuracy", [scores.pixel_accuracy for scores in columns]),
        ("mean accuracy", [scores.mean_accuracy for scores in columns]),
    ]
    heads = ("score", "network", "with the CRF")[: 1 + len(columns)]
    return _table(heads, [[name, *(_percent(value) for value in values)] for name, values in rows])


def _options(about: Mapping[str, Any]) -> str:
    """What was scored, and how."""
    rows = [[html.escape(name.replace("_", " ")), _value(value)] for name, value in about.items()]
    return _table(("option", "value"), rows, "options")


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        parts = [f"{key} = {_plain(one)}" for key, one in value.items()]
        return "<br>".join(html.escape(part) for part in parts)
    return html.escape("none" if value is None else _plain(value))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _classes(result: Evaluation, matrix: np.ndarray, palette: np.ndarray) -> str:
    """A row for each class, the worst IoU first and what never occurs last."""
    final = result.network if result.crf is None else result.crf
    true, said, hits = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    rows: list[tuple[float, list[str]]] = []
    for index, (name, iou) in enumerate(final.iou.items()):
        cells = [
            _named(name, palette[index]),
            f'{_percent(iou)}<s><u style="width:{BAR * (iou or 0):.0f}px"></u></s>',
            _percent(hits[index] / true[index] if true[index] else None),
            _percent(hits[index] / said[index] if said[index] else None),
            f"{true[index]:,}",
            _percent(true[index] / true.sum()),
        ]
        rows.append((2.0 if iou is None else iou, cells))
    rows.sort(key=lambda row: row[0])
    heads = ("class", "IoU", "accuracy", "precision", "pixels", "share of pixels")
    return _table(heads, [cells for _, cells in rows])


def _legend(names: Sequence[str], palette: np.ndarray) -> str:
    """The classes in their own order, beside what the pictures show."""
    named = (_named(name, colour) for name, colour in zip(names, palette, strict=True))
    return "\n".join(f"<span>{one}</span>" for one in named)


def _named(name: str, colour: np.ndarray) -> str:
    """A class's name behind its colour."""
    shown = "#{:02x}{:02x}{:02x}".format(*colour.tolist())
    return f'<i style="background:{shown}"></i>{html.escape(name)}'


def _figure(name: str, said: str, jpeg: bytes) -> str:
    caption = f"<figcaption><b>{html.escape(name)}</b> {html.escape(said)}</figcaption>"
    return f"<figure>{caption}{_picture('jpeg', jpeg, name)}</figure>"


def _picture(kind: str, content: bytes, what: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(what)}" src="data:image/{kind};base64,{data}">'


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "scores") -> str:
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="{kind}">\n<tr>{head}</tr>\n{body}\n</table>'


_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 1320px; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff }}
table {{ border-collapse: collapse; margin: 1em 0 }}
th, td {{ padding: .25em .9em; text-align: right; border-bottom: 1px solid #ddd;
  font-variant-numeric: tabular-nums; vertical-align: top }}
th:first-child, td:first-child, .options th, .options td {{ text-align: left }}
.options td {{ overflow-wrap: anywhere }}
i {{ display: inline-block; width: .9em; height: .9em; margin-right: .5em;
  border: 1px solid #888; vertical-align: -.1em }}
td s {{ display: inline-block; width: {bar}px; margin-left: .6em; text-align: left }}
.legend span {{ display: inline-block; margin-right: 1.2em }}
td u {{ display: inline-block; height: .7em; background: #4a90c2 }}
img {{ display: block; max-width: 100%; height: auto }}
figure {{ margin: 1.5em 0 }}
figcaption {{ margin-bottom: .3em; overflow-wrap: anywhere }}
</style>
<h1>{title}</h1>
<p>Weights {weights}, split {split}. All scores in percent.</p>
{summary}
<details><summary>What was scored, and how</summary>
{options}
</details>
<h2>Classes, the worst first</h2>
<p>Of the final labels. Accuracy: the share of the class's pixels that was found; precision: the
share of what was called so that is so.</p>
{classes}
<h2>Confusion matrix</h2>
{confusion}
<h2>{heading}</h2>
<p>By the mean IoU of the classes that a picture shows. Errors are red, pixels that do not count
black; a class whose colour is black is not painted.</p>
<p class="legend">
{legend}
</p>
{figures}
</html>
"""
