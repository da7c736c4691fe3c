"""Weights that have a name: where they come from, what they are, and where their files lie.

    path = path_of("deeplab_v3_resnet101_coco")     downloads the file once

A name serves wherever a path to weights does. The table is registry.toml. Files lie in
$DEEPLAB_HOME/weights, or else beside those of `torch.hub`. With DEEPLAB_OFFLINE=1 nothing is
downloaded.
"""

from __future__ import annotations

import functools
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch

from deeplab.errors import InputError
from deeplab.weights import download

SCENES = "scenes"  # the weights that the package brings along: deeplab.weights.SHIPPED
TABLE = Path(__file__).with_name("registry.toml")
COCO_STUFF = Path(__file__).with_name("cocostuff.txt")  # things, then stuff, as COCO numbers them


@dataclass(frozen=True)
class Named:
    """Weights that a source publishes.

    Attributes:
        title: what they are, for people.
        url: of the file, or of a zip archive that has it.
        licence: as the source states it.
        score: what the source says of its accuracy.
        member: the file's name in the archive; empty where the url is the file.
        sha256: of what the url gives, its first digits; empty where the source publishes none.
        megabytes: 2**20 bytes, as the source states them; None where it does not.
        model: the builder of the network; empty for a body alone, to start a training from.
        backbone: which body that is, as `deeplab.model.build` names it.
        classes: whose classes they tell apart, "voc2012" or "cocostuff"; "" for a body.
        crf: the settings that go with them, named as in `deeplab.crf_settings`.
    """

    name: str
    title: str
    url: str
    licence: str
    score: str
    member: str = ""
    sha256: str = ""
    megabytes: float | None = None
    model: str = ""
    backbone: str = ""
    classes: str = ""
    crf: Mapping[str, float] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the file lies once it is downloaded."""
        file = PurePosixPath(urlsplit(self.url).path).name
        return folder() / (f"{self.name}-{self.member}" if self.member else file)

    @property
    def size(self) -> str:
        return "size not stated" if self.megabytes is None else f"{self.megabytes:.0f} MiB"

    def metadata(self) -> dict[str, Any]:
        """Class names, palette and CRF settings, as files of `save_weights` have them."""
        from deeplab.data.datasets.classes import VOC
        from deeplab.data.outputs import voc_palette

        found: dict[str, Any] = {"crf": dict(self.crf)} if self.crf else {}
        if self.classes:
            stuff = self.classes == "cocostuff"
            names = COCO_STUFF.read_text(encoding="utf-8").splitlines() if stuff else list(VOC)
            found |= {"class_names": names, "palette": voc_palette()[: len(names)].tolist()}
        return found


@functools.cache
def table() -> Mapping[str, Named]:
    """All named weights that can be downloaded, by name."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {name: Named(name, **row) for name, row in rows.items()}


def for_photographs(device: str) -> str:
    """The name of the weights for photographs that suit a device: "cpu", or a GPU."""
    return "deeplab_v3_mobilenet_coco" if device == "cpu" else "deeplab_v3_resnet101_coco"


def named(name: str) -> Named:
    """The weights of that name; raises InputError, with the names that there are."""
    if name not in table():
        raise InputError(f"no weights are called {name!r}; there are {', '.join(table())}")
    return table()[name]


def folder() -> Path:
    """Where downloaded weights lie."""
    home = os.environ.get("DEEPLAB_HOME")
    return Path(home, "weights") if home else Path(torch.hub.get_dir(), "checkpoints")


def path_of(weights: str | os.PathLike[str]) -> Path:
    """The file of named weights, downloaded where it is not there yet; of a path, that path.

    A file called like named weights comes first. Raises InputError where the download fails.
    """
    path = Path(weights)
    found = table().get(os.fspath(weights))
    if found is None or path.exists():
        return path
    if not found.path.is_file():
        said = f"Downloading {found.name} ({found.size}; {found.licence}) from {found.url}"
        download.fetch(found.url, found.path, said, member=found.member, sha256=found.sha256)
    return found.path
