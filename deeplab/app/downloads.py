"""What the page hands out: mask, overlay, settings, and the program that makes the same mask.

`everything.zip` has all of them, with the photograph and the scribbles or probabilities that the
program reads. The settings begin with the command of `deeplab refine` that does the same.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from deeplab.app.refining import Problem, Wish, refined
from deeplab.data import outputs
from deeplab.data.annotations import UNSURE_INDEX
from deeplab.data.legend import drawn
from deeplab.errors import InputError

KINDS = {
    "mask.png": "image/png",
    "overlay.png": "image/png",
    "crf.toml": "application/toml",
    "reproduce.py": "text/x-python",
    "everything.zip": "application/zip",
}
LONGEST_NAME = 60


def classes_of(given: Any) -> outputs.NamedPalette:
    """Names and colours as the page states them: [{"name": "sky", "colour": [0, 0, 255]}, ...].

    Raises InputError for what is none.
    """
    if not isinstance(given, list) or not 1 <= len(given) <= 256:
        raise InputError("classes must be a list of 1 to 256 names and colours")
    names: list[str] = []
    colours: list[list[int]] = []
    for each in given:
        name, colour = (each.get("name"), each.get("colour")) if isinstance(each, dict) else (0, 0)
        levels = isinstance(colour, list) and len(colour) == 3 and all(map(_is_level, colour))
        if not isinstance(name, str) or not isinstance(colour, list) or not levels:
            raise InputError(
                f"classes must have a name and a colour of three levels each, not {each!r:.80}"
            )
        names.append(" ".join(name.split())[:LONGEST_NAME] or f"class {len(names)}")
        colours.append(colour)
    return outputs.NamedPalette(outputs.full_palette(colours), names)


def download(kind: str, problem: Problem, wish: Wish, classes: outputs.NamedPalette) -> bytes:
    """The content of a file of `KINDS`.

    Raises InputError as `refined` does, for an unknown kind, and where a class has no name.
    """
    if kind == "crf.toml":
        return settings_text(problem, wish).encode()
    if kind == "reproduce.py":
        return program(problem, wish, classes).encode()
    if kind not in KINDS:
        raise InputError(f"file must be one of {', '.join(KINDS)}, not {kind:.80}")
    _check_count(problem, len(classes.names or ()))
    labels = refined(problem, wish).labels
    if kind == "mask.png":
        return outputs.labels_png(labels, classes.palette)
    picture = outputs.picture_png(drawn(problem.image, labels, classes))
    if kind == "overlay.png":
        return picture
    return _archive(
        {
            "photo.png": outputs.picture_png(problem.image),
            **_given(problem, classes),
            "mask.png": outputs.labels_png(labels, classes.palette),
            "overlay.png": picture,
            "crf.toml": settings_text(problem, wish).encode(),
            "reproduce.py": program(problem, wish, classes).encode(),
        }
    )


def settings_text(problem: Problem, wish: Wish) -> str:
    """The settings as TOML, and above them the command that makes the same mask with them."""
    return "".join(f"# {line}\n" for line in _command(problem, wish)) + wish.settings.to_toml()


def _command(problem: Problem, wish: Wish) -> Iterator[str]:
    """What to write in a terminal, and what to know of it."""
    if wish.method != "permutohedral":
        yield f"No command filters by the method {wish.method}; reproduce.py does."
        return
    network = problem.probabilities is not None
    options = "--crf-settings crf.toml"
    if not network:
        options += f" --indices --gt-prob {wish.gt_prob!r}"
    yield "The same mask, in the folder of everything.zip:"
    yield f"deeplab refine photo.png {_name_of_given(problem)} {options}"
    marked = problem.classes.tolist()
    if marked != list(range(len(marked))):
        listed = ", ".join(map(str, marked))
        yield f"Its labels 0, 1, ... are the classes {listed} of mask.png: others have no stroke."


def program(problem: Problem, wish: Wish, classes: outputs.NamedPalette) -> str:
    """Python that makes the same mask of photo.png and the scribbles or probabilities beside it."""
    network, lattice = problem.probabilities is not None, wish.method == "permutohedral"
    settings, marked = wish.settings, problem.classes
    count = len(marked)
    read = "read_probabilities" if network else "read_indices"
    made = "refine_probabilities" if network else "refine_scribbles"
    imports = [
        "from pathlib import Path",
        "import numpy as np",
        "import torch",
        "from crf import Bilateral, DenseCRF, Gaussian",
        "from crf.pydensecrf.utils import unary_from_labels",
        "from deeplab.crf_settings import CRFSettings",
        "from deeplab.data import outputs",
        f"from deeplab.data.annotations import {read}",
        "from deeplab.data.images import read_image",
        "from deeplab.predict import Prediction, as_batch",
        f"from deeplab.refine import CLIP, {made}",
    ]
    file = _name_of_given(problem)
    lines = ['image, _ = read_image("photo.png")']
    if network:
        lines.append(f'given = read_probabilities("{file}", image.shape[:2]).values')
        energies = "np.log(np.clip(given, CLIP, 1.0))"
    else:
        lines.append(f'given = read_indices("{file}", image.shape[:2])')
        energies = f"-unary_from_labels(given.labels, {count}, {wish.gt_prob!r})"
    if lattice:
        trust = "" if network else f", {wish.gt_prob!r}"
        lines += [
            f"settings = CRFSettings({settings.iterations}, {settings.gaussian}, "
            f"{settings.bilateral})",
            f"labels = {made}(given, image, settings{trust}).labels",
        ]
    else:
        lines += [
            f"logits = torch.from_numpy({energies}).reshape(1, {count}, *image.shape[:2])",
            f"layer = DenseCRF({count}, gaussian={settings.gaussian}, bilateral="
            f"{settings.bilateral}, iterations={settings.iterations}, method={wish.method!r})",
            "labels = Prediction.of(layer(logits, as_batch(image).float())[0].numpy()).labels",
        ]
    if not np.array_equal(marked, np.arange(count)):
        lines.append(f"labels = np.array({marked.tolist()}, np.uint8)[labels]")
    lines += [
        f"palette = outputs.full_palette({classes.palette[: len(classes.names or ())].tolist()})",
        'outputs.write_labels(Path("labels.png"), labels, palette)',
    ]
    beside = f"# Runs beside photo.png and {file}, which everything.zip has with it."
    return "\n".join([beside, *_used(imports, "\n".join(lines)), "", *lines, ""])


def _used(imports: list[str], text: str) -> Iterator[str]:
    """The import lines with only those names that a text uses."""
    for line in imports:
        start, _, listed = line.rpartition("import ")
        names = [name for name in listed.split(", ") if re.search(rf"\b{name.split()[-1]}\b", text)]
        if names:
            yield f"{start}import {', '.join(names)}"


def _check_count(problem: Problem, count: int) -> None:
    """InputError unless every class that takes part is named, and of a network no other is."""
    least = int(problem.classes.max(initial=0)) + 1
    if count < least or (problem.probabilities is not None and count > least):
        raise InputError(f"classes must be names and colours of {least}, not {count}")


def _name_of_given(problem: Problem) -> str:
    return "marks.png" if problem.probabilities is None else "probabilities.npz"


def _given(problem: Problem, classes: outputs.NamedPalette) -> dict[str, bytes]:
    """The file that the program reads beside the photograph."""
    name = _name_of_given(problem)
    if problem.probabilities is not None:
        content, count = io.BytesIO(), len(problem.probabilities)
        arrays = {"probabilities": problem.probabilities, **classes.arrays(count)}
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
        return {name: content.getvalue()}
    indices = (problem.annotation.labels - 1).astype(np.uint8)  # -1 is UNSURE_INDEX
    palette = outputs.full_palette(_told_apart(classes.palette[problem.classes].tolist()))
    palette[UNSURE_INDEX] = 0
    return {name: outputs.labels_png(indices, palette)}


def _told_apart(colours: list[list[int]]) -> list[list[int]]:
    """The colours, changed where one is black, which is unsure to who reads the marks by colours,
    or that of a class before it: to the next one in the order of their numbers."""
    found = [0]
    for red, green, blue in colours:
        code = red << 16 | green << 8 | blue
        while code in found:
            code = (code + 1) % (1 << 24)
        found.append(code)
    return [[code >> 16, code >> 8 & 255, code & 255] for code in found[1:]]


def _archive(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, file in files.items():
            archive.writestr(name, file)
    return content.getvalue()


def _is_level(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255
