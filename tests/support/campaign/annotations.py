"""Annotations of other tools, as `data import` reads them: right, damaged, and with odd values.

Oracle: regions that fill a picture, marked by their outlines, come back as the label map that they
were, without those that are ignored.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from annotated import WRITERS, outlines, photo, stored
from hypothesis import strategies as st

from campaign import damage
from campaign.case import Case, Command, Ended, require
from campaign.runner import Family

HEIGHT, WIDTH = 20, 24
NAMES = ("c0", "c1", "c2")
ODD = (
    *(None, True, -1, 0, 0.5, 1e308, 10**400, 2**63, float("nan"), "", "x", "\0", "\n", "a" * 999),
    *([], {}, [[]], [1], {"a": 1}),
)


def truth() -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[4:15, 5:20] = 1
    labels[7:9, 3:9] = 2
    return labels


def write_cvat(root: Path, pictures: dict[str, np.ndarray], names: tuple[str, ...]) -> Path:
    (file, labels), *_ = pictures.items()
    shapes = "".join(
        f'<polygon label="{names[value]}" points="{";".join(f"{x},{y}" for x, y in border)}"/>'
        for value, border in outlines(labels)
    )
    declared = "".join(f"<label><name>{name}</name></label>" for name in names)
    (root / "annotations.xml").write_text(
        f"<annotations><meta><task><labels>{declared}</labels></task></meta>"
        f'<image name="{file}" width="{WIDTH}" height="{HEIGHT}">{shapes}</image></annotations>'
    )
    return root


def write_supervisely(root: Path, pictures: dict[str, np.ndarray], names: tuple[str, ...]) -> Path:
    (file, labels), *_ = pictures.items()
    classes = [{"title": name, "color": "#102030"} for name in names]
    (root / "meta.json").write_text(json.dumps({"classes": classes}))
    objects = [
        {"classTitle": names[value], "points": {"exterior": border, "interior": []}}
        for value, border in outlines(labels)
    ]
    content = {"size": {"height": HEIGHT, "width": WIDTH}, "tags": [], "objects": objects}
    (root / "ds" / "ann").mkdir(parents=True)
    (root / "images").rename(root / "ds" / "img")
    (root / "ds" / "ann" / f"{file}.json").write_text(json.dumps(content))
    return root


SOURCES = {**WRITERS, "cvat": write_cvat, "supervisely": write_supervisely}


def write_sources(shared: Path) -> None:
    """A right source of each format, in the folder of its name."""
    for kind, write in SOURCES.items():
        photo(shared / kind / "images" / "a.png", (HEIGHT, WIDTH))
        place = write(shared / kind, {"a.png": truth()}, NAMES)
        (shared / f"{kind}.place").write_text(place.relative_to(shared / kind).as_posix())


def laid(shared: Path, kind: str) -> tuple[list[str], dict[str, bytes]]:
    """The command line of an import, and the files that it reads."""
    root = shared / kind
    files = {
        f"set/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
    place = (shared / f"{kind}.place").read_text()
    return ["data", "import", kind, f"set/{place}", "out"], files


def whole(ignored: str) -> Any:
    def check(folder: Path, _ended: Ended) -> None:
        kept = [name for name in NAMES if name != ignored]
        values = [kept.index(name) if name in kept else 255 for name in NAMES]
        (path,) = (folder / "out" / "labels").rglob("*.png")
        expected = np.array(values, np.uint8)[truth()]
        require(np.array_equal(stored(path), expected), f"another label map: {path}")

    return check


@st.composite
def right(draw: Any, shared: Path) -> Case:
    kind, ignored = draw(st.sampled_from(sorted(SOURCES))), draw(st.sampled_from(("", *NAMES)))
    args, files = laid(shared, kind)
    args += ["--ignore", ignored] if ignored else []
    args += draw(st.sampled_from((["--link"], ["--order", "largest"], ["--crowds", "ignore"])))
    return Command(f"{kind}, right", args, files, "result", check=whole(ignored))


@st.composite
def harmed(draw: Any, shared: Path) -> Case:
    """A file of it cut, flipped, swapped, or none of its kind."""
    kind = draw(st.sampled_from(sorted(SOURCES)))
    args, files = laid(shared, kind)
    name = draw(st.sampled_from(sorted(files)))
    if draw(st.integers(0, 9)):
        how, content = damage.harm(draw, files[name])
    else:
        how = draw(st.sampled_from(sorted(damage.OTHER_FILES)))
        content = damage.OTHER_FILES[how]
    return Command(f"{kind}, {name}: {how}", args, files | {name: content})


@st.composite
def odd(draw: Any, shared: Path) -> Case:
    """JSON in which a value is another, or missing."""
    kind = draw(st.sampled_from(("coco", "labelme", "supervisely")))
    args, files = laid(shared, kind)
    name = draw(st.sampled_from(sorted(name for name in files if name.endswith(".json"))))
    content = json.loads(files[name])
    chance = random.Random(draw(damage.seeds()))
    holder, key = chance.choice(list(places(content)))
    value = chance.choice(ODD)
    if chance.random() < 0.2:
        del holder[key]
    else:
        holder[key] = value
    said = f"{kind}, {name}: {key} is {value!r:.40}"
    return Command(said, args, files | {name: json.dumps(content).encode()})


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Each list or table in `content`, with each index or key in it."""
    keys = content.keys() if isinstance(content, dict) else range(len(content))
    for key in keys:
        yield content, key
        if isinstance(content[key], dict | list):
            yield from places(content[key])


def cases(shared: Path) -> st.SearchStrategy[Case]:
    return st.one_of(right(shared), harmed(shared), harmed(shared), odd(shared), odd(shared))


FAMILY = Family("annotations", "annotations of other tools", write_sources, cases)
