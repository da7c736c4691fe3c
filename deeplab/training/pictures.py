"""A few pictures of the validation set, drawn with what the network makes of them each time."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deeplab.data.datasets.base import Remembering
from deeplab.data.outputs import full_palette, write_picture
from deeplab.evaluation.evaluate import LabelledImages
from deeplab.evaluation.panels import as_rgb, panel
from deeplab.model.preprocess import Preprocessing
from deeplab.training.callbacks import Callback, Run, Validation, ValidationPicture


class ValidationPictures(Remembering):
    """A validation set that draws `count` of its pictures as their predictions come.

    They are spread over the share of the first of `world` processes, which alone draws.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        names: list[str],
        count: int,
        palette: npt.ArrayLike,
        preprocessing: Preprocessing,
        world: int,
    ) -> None:
        super().__init__(dataset)
        self.names = names
        self.palette, self.preprocessing = full_palette(np.asarray(palette)), preprocessing
        share = range(0, len(dataset), world)
        places = np.linspace(0, len(share) - 1, min(count, len(share)))
        self.chosen = {share[round(place)] for place in places.tolist()}
        self._drawn: list[ValidationPicture] = []

    def draw(self, index: int, labels: np.ndarray) -> None:
        """The prediction of the picture that was read last."""
        if index in self.chosen:
            image, truth = (np.asarray(part) for part in self.last)
            shown = panel(as_rgb(image, self.preprocessing), truth, labels, self.palette)
            self._drawn.append(ValidationPicture(self.names[index], shown))

    def take(self) -> tuple[ValidationPicture, ...]:
        """What was drawn since the last call."""
        drawn, self._drawn = tuple(self._drawn), []
        return drawn


class PictureFolder(Callback):
    """The validation pictures as FOLDER/NAME/STEP.png, so that one leafs through the steps.

    What lies there beyond the step of a resume, all of it for a new run, is removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_start(self, run: Run) -> None:
        for path in pictures_in(self.folder):
            if int(path.stem) > run.step:
                path.unlink()

    def on_validation(self, validation: Validation) -> None:
        for picture in validation.pictures:
            name = re.sub(r"[^\w.-]+", "_", picture.name)
            write_picture(self.folder / name / f"{validation.step:06d}.png", picture.panel)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures that runs have written into the folder."""
    return [path for path in folder.glob("*/*.png") if re.fullmatch(r"\d{6,}", path.stem)]
