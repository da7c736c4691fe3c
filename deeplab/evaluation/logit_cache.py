"""A network's logits for some pictures, kept on disk: one pass of the network, many of the CRF.

    FOLDER/cache.json       what the logits belong to: the network, the data set, the pictures
    FOLDER/00007.npz        logits float16 [C, h, w] at the network's resolution, image, labels;
                            class_names [C] and palette [C, 3] for whoever looks into it

Of each pixel's logits the largest is subtracted before they are rounded to 16 bits: interpolation
is linear, so that the softmax at the picture's size stays what it was, and the rounding is finest
for the classes that matter. What a cache was made of is hashed: the network's weights and options,
and every picture with its labels. Another network or data set is refused, not used.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deeplab.data import outputs
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import LabelledImages, require_finite
from deeplab.model import DeepLab
from deeplab.predict import as_levels, at_scale, check_scales

FORMAT = 1
LOWEST = -6e4  # close to the smallest float16


@dataclass(frozen=True)
class Cached:
    """One picture of the cache: logits float32 `[1, C, H, W]` at the picture's size, image
    `[1, 3, H, W]` RGB as the CRF sees it, labels int64 `[H, W]`."""

    logits: Tensor
    image: Tensor
    labels: Tensor


class LogitCache:
    """The logits of `model` for the pictures `indices` of `dataset`, in `folder`.

    scale: at which the network sees the pictures.

    Raises ValueError for a scale that is not 0.1 to 4; InputError: the folder holds the logits of
    another network, of other pictures or at another scale, or files of which nothing tells.
    """

    def __init__(
        self,
        folder: Path,
        model: DeepLab,
        dataset: LabelledImages,
        indices: Sequence[int],
        name: str,
        classes: outputs.NamedPalette,
        scale: float = 1.0,
    ) -> None:
        check_scales([scale])
        self.scale = scale
        self.folder, self.model, self.dataset = folder, model, dataset
        self.indices = list(indices)
        self._classes = classes
        self.about: dict[str, Any] = {
            "format": FORMAT,
            "network": network_hash(model),
            "data": name,
            "indices": self.indices,
        }
        if scale != 1:  # as caches of earlier versions, which do not say it, have it
            self.about["scale"] = scale
        outputs.check_writable(folder)
        stored = _read_json(folder / "cache.json")
        if stored is None:
            if any(folder.glob("*.npz")):
                raise InputError(
                    f"{folder}: holds .npz files and no cache.json that says whose logits they "
                    "are; remove the folder, or choose another --cache"
                )
            outputs.write_text(folder / "cache.json", json.dumps(self.about) + "\n")
        else:
            _refuse_difference(folder, stored, self.about)

    def __len__(self) -> int:
        return len(self.indices)

    def fill(self) -> Iterator[bool]:
        """Check or compute each picture in turn; yields whether it was computed now.

        Raises InputError where the picture is no longer the one of the cache, FloatingPointError
        where the network gives NaN or Inf.
        """
        device = next(self.model.parameters()).device
        training = self.model.training
        self.model.eval()
        try:
            for position, index in enumerate(self.indices):
                image, labels = (np.asarray(part) for part in self.dataset[index])
                labels = labels.astype(np.uint8)
                path = self._file(position)
                if path.exists():
                    self._check(path, index, image, labels)
                    yield False
                    continue
                with torch.no_grad():
                    view = at_scale(self.model.preprocess(image).to(device), self.scale)
                    logits = self.model(view, upsample=False)
                require_finite(logits, index)
                logits = (logits - logits.amax(1, keepdim=True)).clamp(min=LOWEST)
                rounded = logits[0].cpu().numpy().astype(np.float16)
                arrays = {"logits": rounded, "image": image, "labels": labels}
                outputs.write_arrays(path, arrays | self._classes.arrays(len(rounded)))
                yield True
        finally:
            self.model.train(training)

    def __getitem__(self, position: int) -> Cached:
        """The picture at that position of `indices`."""
        stored = self._load(self._file(position))
        labels = torch.from_numpy(stored["labels"].astype(np.int64))
        logits = torch.from_numpy(stored["logits"].astype(np.float32))[None]
        size = (labels.shape[0], labels.shape[1])
        logits = self.model.upsample(logits, size)
        return Cached(logits, as_levels(self.model, stored["image"]), labels)

    def identity(self) -> str:
        """A hash of the network and of all pictures with their labels, as they lie in the cache."""
        digest = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode())
        for position in range(len(self)):
            stored = self._load(self._file(position))
            digest.update(stored["image"].tobytes() + stored["labels"].tobytes())
        return digest.hexdigest()[:16]

    def _file(self, position: int) -> Path:
        return self.folder / f"{position:05d}.npz"

    def _load(self, path: Path) -> dict[str, np.ndarray]:
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in ("logits", "image", "labels")}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path}: damaged or missing ({error}); remove it, and it is computed again"
            ) from error

    def _check(self, path: Path, index: int, image: np.ndarray, labels: np.ndarray) -> None:
        stored = self._load(path)
        for what, before, now in (
            ("picture", stored["image"], image),
            ("labels", stored["labels"], labels),
        ):
            if not np.array_equal(before, now):
                raise InputError(
                    f"{path}: the {what} of number {index} in the data set changed since these "
                    f"logits were computed; remove {self.folder}, or choose another --cache"
                )


def network_hash(model: DeepLab) -> str:
    """A hash of a network's weights and options."""
    digest = hashlib.sha256(json.dumps(model.config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _refuse_difference(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    said = {
        "format": "another version of this program",
        "network": "other weights, or of these at other scales (MSC)",
        "data": f"another data set, {stored.get('data')!s:.80} instead of {wanted['data']}",
        "indices": "other pictures of it",
        "scale": "pictures at another scale",
    }
    different = [said[key] for key in said if stored.get(key) != wanted.get(key)]
    if different:
        raise InputError(
            f"{folder}: holds the logits of {' and '.join(different)}; remove it, or choose "
            "another --cache"
        )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); remove the folder") from error
    if not isinstance(stored, dict):
        raise InputError(f"{path}: is not the description of a cache; choose another --cache")
    return stored
