"""Files in, label maps out, as rows of a data set: the class that Ray Data's `map_batches` takes.

    files = ray.data.read_binary_files(folder, include_paths=True)
    rows = files.map_batches(BatchSegmenter, fn_constructor_args=[weights], batch_size=4)
    rows.write_parquet(out)

A batch is a dict of NumPy arrays, so that nothing here needs Ray. Pictures go through the network
one by one: how rows fall into batches then changes nothing. examples/ray_segment.py is a program,
docs/ray.md has more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from deeplab.crf_settings import CRFSettings
from deeplab.data.bands import read_picture
from deeplab.data.folders import class_shares
from deeplab.data.legend import drawn
from deeplab.data.outputs import NamedPalette, full_palette, labels_png, picture_png
from deeplab.errors import InputError
from deeplab.predict.predictor import Predictor
from deeplab.predict.views import as_rgb
from deeplab.weights import load_checkpoint, registry

PATH, BYTES = "path", "bytes"  # as `ray.data.read_binary_files` calls them
OVERLAY = "overlay"
NUMBERS = ("width", "height")
EMPTY = {"labels": b"", **dict.fromkeys(NUMBERS, 0), "shares": "{}", "notes": "", "error": ""}


class BatchSegmenter:
    """Network and CRF on batches of picture files, as `deeplab segment` has them.

    Args:
        weights: a file, or a name of `deeplab.weights.registry`, which is downloaded where it is
            not there; None for those for photographs that suit the device.
        crf: the dense CRF with the settings stored with the weights, with others, or (False) none.
        overlay: a column of pictures with the classes laid over them too.
        device: for network and CRF; None for a GPU where torch sees one, and else the CPU.
        **options: more for `Predictor`: scales, flip, precision, threshold, tile, overlap.

    Raises InputError where the weights cannot be read, have several labels a pixel or more than 256
    classes, or there is no GPU and one is asked for; ValueError and TypeError as `Predictor` does.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        *,
        crf: bool | CRFSettings = True,
        overlay: bool = False,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> None:
        place = _device(device)
        opened = load_checkpoint(
            registry.for_photographs(place.type) if weights is None else weights
        )
        opened.check_label_maps()
        model, metadata = opened.model, opened.metadata
        if model.multilabel:
            raise InputError(f"{opened.path}: must be weights of one label a pixel, not of several")
        settings = (
            crf if isinstance(crf, CRFSettings) else CRFSettings.stored(metadata, opened.path)
        )
        layer = settings.refiner(model.num_classes) if crf else None
        self.predictor = Predictor(model, layer, bands=settings.bands, device=place, **options)
        self.shown_bands = None if settings.bands == "all" else settings.bands
        self.classes = NamedPalette(
            full_palette(metadata.get("palette")), metadata.get("class_names")
        )
        self.overlay = overlay

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Segment a batch of files.

        batch: arrays `[B]` by column: `path` (str), whose suffix tells `.npy` and TIFFs of bands
        apart from other pictures, and `bytes`, what is in the file; more go along as they are.

        Returns the same rows, in their order, without `bytes` and with

            labels          the file NAME_labels.png of `deeplab segment`, bytes
            overlay         its NAME_overlay.png, bytes, where that is wanted
            width, height   of the picture in pixels, int64
            shares          the area of each class, as a manifest has it: JSON, by name
            notes           what reading has changed, such as "grey converted to RGB"
            error           why there is no result, in one line

        Where a picture cannot be used the error is not empty and the others are, or 0: no type
        depends on what a batch holds, as tables in parts want it.

        Raises InputError for a batch without `path` and `bytes`, or with a column of the result.
        """
        names = [*EMPTY, OVERLAY] if self.overlay else [*EMPTY]
        _check_columns(batch, names)
        rows = []
        for path, content in zip(batch[PATH], batch[BYTES], strict=True):
            try:
                rows.append(self._row(str(path), bytes(content)))
            except InputError as error:
                rows.append(EMPTY | {OVERLAY: b"", "error": str(error)})
        found = {name: _column(name, [row[name] for row in rows]) for name in names}
        return {name: column for name, column in batch.items() if name != BYTES} | found

    def _row(self, path: str, content: bytes) -> dict[str, Any]:
        model = self.predictor.model
        image, conversions = read_picture(path, model.in_channels, content=content)
        try:
            labels = self.predictor(image, probabilities=False).labels
            shown = as_rgb(model, image, self.shown_bands) if self.overlay else None
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        height, width = labels.shape
        areas = class_shares(labels, self.classes.names)
        shares = {name: round(share, 6) for name, share in areas.items()}
        drawing = b"" if shown is None else picture_png(drawn(shown, labels, self.classes))
        return EMPTY | {
            "labels": labels_png(labels, self.classes.palette),
            OVERLAY: drawing,
            "width": width,
            "height": height,
            "shares": json.dumps(shares, ensure_ascii=False),
            "notes": "; ".join(conversion.text for conversion in conversions),
        }


def _device(device: str | torch.device | None) -> torch.device:
    there = torch.cuda.is_available()
    place = torch.device("cuda" if there else "cpu") if device is None else torch.device(device)
    if place.type == "cuda" and not there:
        raise InputError(
            f"device must be cpu where torch sees no GPU, not {place}; map_batches(num_gpus=1) "
            "gives each worker one"
        )
    return place


def _check_columns(batch: Mapping[str, np.ndarray], added: Sequence[str]) -> None:
    if PATH not in batch or BYTES not in batch:
        there = ", ".join(map(str, batch)) or "none"
        raise InputError(
            f"batch must have the columns {PATH} and {BYTES}, as ray.data.read_binary_files gives "
            f"them with include_paths=True, not {there}"
        )
    if taken := [name for name in added if name in batch]:
        raise InputError(
            f"batch must not have the column {taken[0]}, which the result has; rename it"
        )


def _column(name: str, values: Sequence[Any]) -> np.ndarray:
    """Texts and bytes as objects: NumPy's own types pad them, and take zeros at the end away."""
    column = np.empty(len(values), np.int64 if name in NUMBERS else object)
    column[:] = values
    return column
