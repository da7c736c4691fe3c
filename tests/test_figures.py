"""Figures in tables of the documents are those of the records that the tables name.

A table is known by its first line. A row's records are those that it links to, or the row above, or
the paragraph before the table; its figures are the numbers behind its first columns, which say what
it is of, and have to be those of the record, rounded to the digits that are shown.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]

LINK = re.compile(r"\(?\[[^\]]*\]\([^)]*?\)\)?")
RECORD = re.compile(r"\]\([^)]*bench/records/([^)]+)\)")
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")  # not that of a name, such as pydensecrf2

Record = dict[str, Any]


class Row(NamedTuple):
    """What a row is of, by its first columns; the records it names; its figures as they stand."""

    of: tuple[str, ...]
    records: tuple[str, ...]
    figures: tuple[str, ...]


class Table(NamedTuple):
    """How many columns say what a row is of, and the figures of a row: of its records and these."""

    labels: int
    expected: Callable[..., Sequence[float]]


def tables(text: str) -> Iterator[tuple[str, str, list[list[str]]]]:
    """First line, paragraph before, and cells of each table."""
    for block in re.finditer(r"((?:^(?!\|).+\n)*)\n*((?:^\|.*\n)+)", text, re.M):
        first, _, *rest = block[2].splitlines()
        yield first, block[1], [[cell.strip() for cell in line.split("|")[1:-1]] for line in rest]


def rows(before: str, cells: Sequence[Sequence[str]], labels: int) -> Iterator[Row]:
    records, of = tuple(RECORD.findall(before)), ("",) * labels
    for line in cells:
        records = tuple(RECORD.findall(" ".join(line))) or records
        of = tuple(new or old for new, old in zip(line[:labels], of, strict=True))
        figures = NUMBER.findall(LINK.sub("", " ".join(line[labels:])))
        yield Row(tuple(LINK.sub("", part).strip() for part in of), records, tuple(figures))


@cache
def record(name: str) -> Record:
    found: Record = json.loads((ROOT / "bench" / "records" / name).read_text())
    return found


def differences(before: str, cells: Sequence[Sequence[str]], table: Table) -> list[str]:
    """What a table shows otherwise than its records have it."""
    found = []
    for row in rows(before, cells, table.labels):
        values = table.expected(*row.of, *map(record, row.records))
        digits = [len(figure.partition(".")[2]) for figure in row.figures]
        shown = tuple(f"{v:.{d}f}" for v, d in zip(values, digits, strict=False))
        if len(values) != len(digits) or shown != row.figures:
            found.append(f"{row.of}: {row.figures}, of the record {values}")
    return found


# What stands in which table


def cases(of: Record) -> dict[str, Record]:
    return {
        case["name"]: case["candidates"] for each in of["comparisons"] for case in each["cases"]
    }


def times_as_fast(of: Record, names: str) -> list[float]:
    """The leads over pydensecrf2 in the cases whose whole name is one of a pattern."""
    found = [rows for name, rows in cases(of).items() if re.fullmatch(names, name)]
    return [rows["pydensecrf2"]["ours_is_faster_by"]["median_of_pairs"] for rows in found]


def cores(sigmas: str, labels: str, of: Record) -> Sequence[float]:
    entries = cases(of)[f"375x500 {sigmas.replace(' ', '')}, {labels} labels, one core"]
    ours, peer = entries["crf.pydensecrf.densecrf"], entries["pydensecrf2"]
    ms = [1e3 * entry["seconds"]["p50"] for entry in (peer, ours)]
    return [*ms, peer["ours_is_faster_by"]["median_of_pairs"]]


def peaks(sigmas: str, labels: str, of: Record) -> Sequence[float]:
    entries = cases(of)[f"375x500 {sigmas.replace(' ', '')}, {labels} labels, one core"]
    both = entries["pydensecrf2"], entries["crf.pydensecrf.densecrf"]
    return [entry["peak_bytes"] / 1e6 for entry in both]


def filters(sigmas: str, of: Record) -> Sequence[float]:
    xy, rgb = sigmas.split(" / ")
    entries = cases(of)[f"48x64 {4 * float(xy):g}/{rgb} methods"]  # whose name has the photograph's
    found = [entries[name]["quality"] for name in ("permutohedral", "separable") if name in entries]
    return [value for q in found for value in (100 * q["same_label"], q["mean_error"])]


def scenes(what: str, of: Record) -> Sequence[float]:
    key = "miou" if what == "mIoU" else "band_miou"
    return [100 * of["test"][part][key] for part in ("network", "crf")]


def precision(_: str, of: Record) -> Sequence[float]:
    (found,) = of["comparisons"]
    parts = found["equal"].values()  # of the network, and with its CRF
    return [100 * part[which] for part in parts for which in ("all", "least")]


PICTURES = {  # in bench/tiles.py
    "CamVid's street scenes side by side": "street scenes",
    "one of them enlarged": "one street scene",
    "other photographs, of cats, cups and people, side by side": "photographs",
    "one scene, larger than any that the network was trained on": "one scene",
    "scenes of the size that it knows, side by side": "many scenes",
}


def published(what: str, of: Record) -> Sequence[float]:
    (found,) = of["comparisons"]
    clock = "cpu" if "processor seconds" in what else "wall"
    labels, logits = found[f"labels {clock}"], found[f"logits {clock}"]
    times = [labels["ours_seconds"], labels["theirs_seconds"], labels["ours_is_faster_by"]]
    return [*times, logits["ours_is_faster_by"]]


def seams(pictures: str, *of: Record) -> Sequence[float]:
    every = [found for each in of for found in each["comparisons"][0]["found"]]
    found = [each for each in every if each["picture"] == PICTURES[pictures]]
    return [100 * found[0]["network"], *(100 * each["refined"] for each in found)]


def predictions(case: str, of: Record) -> Sequence[float]:
    kernels = [row for row in of["comparisons"][0]["rows"] if row["target"] == "sm_90"]
    own = [row for row in kernels if row["case"] == case]
    launches, floor, predicted = (
        sum(row[key] for row in own) for key in ("launches", "floor_seconds", "predicted_seconds")
    )
    return [launches, 1e6 * floor, 1e6 * predicted]


def beside_others(what: str, of: Record) -> Sequence[float]:
    """The table of the README."""
    if "one core each" in what:
        leads = times_as_fast(of, r"375x500 .*, one core")
        return [min(leads), max(leads)]
    if "deeplab refine" in what:
        return [of["comparisons"][0]["times"]["wall"]]
    if "deeplab segment" in what:
        (found,) = of["comparisons"]
        memory = "memory" in what
        return [found["found"]["peak_bytes"] / 1e9 if memory else found["times_alone"]]
    if "processor seconds" in what:
        seconds = of["comparisons"][0]["labels cpu"]
        return [seconds["theirs_seconds"], seconds["ours_seconds"]]
    return scenes("mIoU", of)


TABLES = {
    "| | before | here |": Table(1, beside_others),
    "| sigma_xy / sigma_rgb | labels | pydensecrf2 | `crf.pydensecrf.densecrf` | times as fast |": (
        Table(2, cores)
    ),
    "| sigma_xy / sigma_rgb | labels | megabytes: pydensecrf2 | `crf.pydensecrf` |": (
        Table(2, peaks)
    ),
    "| sigma_xy / sigma_rgb | pydensecrf2 | `crf.pydensecrf` |": (
        Table(1, lambda sigmas, of: cores(sigmas, "21", of)[:2])
    ),
    '| sigma_xy / sigma_rgb | `"permutohedral"` (and pydensecrf2) | `"separable"` |': (
        Table(1, filters)
    ),
    "| sigma_xy / sigma_rgb | lattice | landmarks |": (
        Table(1, lambda sigmas, of: filters(sigmas, of)[::2])
    ),
    "| | network | network + CRF |": Table(1, scenes),
    "| | labels: ours, theirs | times as fast | up to the logits |": Table(1, published),
    "| the same labels | network | network + CRF |": Table(1, precision),
    "| | network alone | with `segment`'s CRF | with `refine`'s |": Table(1, seams),
    "| | network alone | with the CRF |": Table(1, seams),
    "| configuration | launches | floor | predicted | bound by |": Table(1, predictions),
    "| Configuration | Floor | Predicted |": Table(1, lambda case, of: predictions(case, of)[1:]),
}


def all_tables() -> Iterator[tuple[str, str, list[list[str]]]]:
    for document in DOCUMENTS:
        for first, before, cells in tables(document.read_text()):
            if RECORD.search(before + str(cells)):
                yield first, before, cells


def test_every_table_that_names_a_record_shows_what_it_has() -> None:
    named = list(all_tables())
    assert sorted(first for first, _, _ in named) == sorted(TABLES)
    assert not [each for first, *of in named for each in differences(*of, TABLES[first])]


def test_a_figure_that_is_not_in_the_record_is_found() -> None:
    """Any figure of any table, one off in its last digit, and one that is left out."""
    for first, before, cells in all_tables():
        table = TABLES[first]
        for number, line in enumerate(cells):
            for column in range(table.labels, len(line)):
                for figure in NUMBER.finditer(LINK.sub("", line[column])):
                    last = str((int(figure[0][-1]) + 1) % 10)
                    for wrong in (figure[0][:-1] + last, ""):
                        changed = [list(each) for each in cells]
                        changed[number][column] = line[column].replace(figure[0], wrong, 1)
                        assert differences(before, changed, table), (line, wrong)
