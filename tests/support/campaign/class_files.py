"""Class files: names, colours, values and ignored values as people write them, and as nobody does.

Oracle: a class file that is right gives, in `data check --json`, its names in their order, and the
pixels of each by the values that it gives them.
"""

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from hypothesis import strategies as st

from campaign import damage
from campaign.case import Case, Command, Ended, require
from campaign.labels import CHECK, HEIGHT, PICTURE, WIDTH, stored
from campaign.runner import Family
from campaign.toml_texts import broken_toml

PLAIN = (
    st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda name: name and not name[-1].isdigit())
)
NAMES = st.lists(PLAIN, min_size=1, max_size=12, unique=True)


def files(name: str, content: bytes, labels: np.ndarray) -> dict[str, bytes]:
    suffix, stored_labels = stored(labels, "grey")
    pair = {"set/images/0.png": PICTURE, f"set/labels/0{suffix}": stored_labels}
    return {f"set/{name}": content, **pair}


def lists(
    names: list[str], values: list[int], labels: np.ndarray, folder: Path, _ended: Ended
) -> None:
    found = json.loads((folder / "found.json").read_text())["splits"]["all"]["classes"]
    require([one["name"] for one in found] == names, f"names {found}, expected {names}")
    pixels = [int((labels == value).sum()) for value in values]
    require([one["pixels"] for one in found] == pixels, f"pixels {found}, expected {pixels}")


def one_of_each(values: list[int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(values, (HEIGHT, WIDTH)).astype(np.uint8)


@st.composite
def text(draw: Any) -> Case:
    names = draw(NAMES)
    values = list(range(len(names)))
    labels = one_of_each(values, draw(damage.seeds()))
    ends = draw(st.sampled_from(("\n", "\r\n", "\n\n")))
    mark = draw(st.sampled_from(("", "\ufeff")))
    content = (mark + ends.join(f" {name} " for name in names) + ends).encode()
    # names are stripped, and lines are cut where str.splitlines cuts them
    whole = [name for name in names if len(name.splitlines()) == 1]
    check = partial(lists, names, values, labels) if len(whole) == len(names) else None
    said = f"classes.txt of {len(names)} names"
    args = {"wanted": "result", "check": check} if check else {}
    return Command(said, CHECK, files("classes.txt", content, labels), **args)


@st.composite
def table(draw: Any) -> Case:
    """classes.toml with values of its own."""
    names = draw(NAMES)
    count = len(names)
    values = draw(st.lists(st.integers(0, 254), min_size=count, max_size=count, unique=True))
    entries: list[dict[str, Any]] = [
        {"name": name, "label": value} for name, value in zip(names, values, strict=True)
    ]
    free = [value for value in range(255) if value not in values]
    ignored = draw(st.lists(st.sampled_from(free), max_size=3, unique=True))
    content: dict[str, Any] = {"ignore": ignored, "class": entries}
    labels = one_of_each([*values, *ignored, 255], draw(damage.seeds()))
    laid = files("classes.toml", tomli_w.dumps(content).encode(), labels)
    check = partial(lists, names, values, labels)
    return Command(f"classes.toml of {count}", CHECK, laid, "result", check=check)


@st.composite
def harmed(draw: Any) -> Case:
    """Text that was cut, flipped or is none."""
    labels = one_of_each([0, 1], 0)
    entries = [{"name": "sky", "colour": [1, 2, 3]}, {"name": "tree", "colour": [4, 5, 6]}]
    content = tomli_w.dumps({"ignore": [9], "class": entries}).encode()
    name = draw(st.sampled_from(("classes.toml", "classes.txt")))
    if name == "classes.txt":
        content = b"sky 1 2 3\ntree 4 5 6\n"
    how, broken = damage.harm(draw, content)
    return Command(f"{name}, {how}", CHECK, files(name, broken, labels), names=[name, "set/labels"])


@st.composite
def no_toml(draw: Any) -> Case:
    content = broken_toml(random.Random(draw(damage.seeds())))
    return Command("TOML that is none", CHECK, files("classes.toml", content, one_of_each([0], 0)))


def cases(_shared: Path) -> st.SearchStrategy[Case]:
    return st.one_of(text(), table(), table(), harmed(), no_toml())


def handmade(_shared: Path) -> list[Case]:
    labels = one_of_each([0, 1], 0)
    made: list[Case] = [
        Command(f"{what} as {name}", CHECK, files(name, content, labels))
        for what, content in damage.OTHER_FILES.items()
        for name in ("classes.txt", "classes.toml")
    ]
    texts = {
        "256 classes": ("\n".join(f"class{i}x" for i in range(256)), "refused"),
        "255 classes": ("\n".join(f"class{i}x" for i in range(255)), "result"),
        "two classes of one name": ("a\nb\na\n", "refused"),
        "some with colours": ("a 1 2 3\nb\n", "refused"),
        "two of one colour": ("a 1 2 3\nb 1 2 3\n", "refused"),
        "a colour above 255": ("a 1 2 300\nb 1 2 3\n", "refused"),
        "markup": ("[/bold]\n[red]x[/red]\n", "result"),
        "a name of 5000 letters": ("a" * 5000 + "\nb\n", None),
    }
    for what, (content, wanted) in texts.items():
        laid = files("classes.txt", content.encode(), labels)
        made.append(Command(what, CHECK, laid, wanted))  # type: ignore[arg-type]
    deep = b"x = " + b"[" * 5000 + b"]" * 5000
    made.append(Command("nested TOML", CHECK, files("classes.toml", deep, labels), "refused"))
    return made


FAMILY = Family("class_files", "class files", lambda _shared: None, cases, handmade)
