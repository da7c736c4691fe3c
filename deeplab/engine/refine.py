"""The dense CRF on its own: scribbles or anyone's probabilities, refined on the photograph.

    energy:   E(x) = sum_i -log P(x_i) + sum_{i<j} [x_i != x_j] (w1 k_bilateral + w2 k_gaussian)
    answer:   argmax of the mean-field marginals

Probabilities come from a network. Scribbles are labels for some pixels: there, P = gt_prob for the
label and the rest shared by the others; elsewhere, "unsure", all labels are equally likely. This is
the flow of pydensecrf's example `inference.py`, down to the order of the features (y, x, r, g, b),
so that the same files give the same labels.

Sources: Krähenbühl and Koltun, NIPS 2011; DeepLab v2, section 3.3; the pydensecrf examples.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from PIL import Image

import crf
from crf import densecrf
from crf import utils as crf_utils
from deeplab.data.images import MAX_MEGAPIXELS, load_picture
from deeplab.engine.predict import Prediction
from deeplab.errors import InputError

CLIP = 1e-5
"""Probabilities below this count as this, so that no label is ruled out for good."""

ROUNDING = 0.01
"""How far probabilities may be from 0 and their sums from 1: half precision, resizing."""

UNSURE_INDEX = 255
"""The unsure pixels of an annotation by class indices, as in VOC's label maps."""

MAX_LABELS = 255

SMALL_INDEX = 64
"""Grey levels below this, and 255, are more likely class indices than shades that were drawn."""

GREY = (
    "a grey picture of small values, read as colours (0 is unsure); if its values are class "
    "indices, read it with --indices (read_indices)"
)
INDEXED = (
    "a palette picture, read by its colours (black is unsure); if its values are class indices, as "
    "in VOC's label maps, read it with --indices (read_indices)"
)


@dataclass(frozen=True)
class CRFSettings:
    """The numbers of a dense CRF: weights of the two kernels, their widths, iterations.

    gaussian_sigma and bilateral_sigma_xy are in pixels, bilateral_sigma_rgb in grey levels
    (0-255). compatibility is what each label (a row) pays next to each other, as a training learns
    it; None: 1 where they differ. The default is that of DeepLab v2's released scripts.
    """

    iterations: int = 10
    gaussian_weight: float = 3.0
    gaussian_sigma: float = 3.0
    bilateral_weight: float = 4.0
    bilateral_sigma_xy: float = 49.0
    bilateral_sigma_rgb: float = 5.0
    compatibility: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        learned = self.compatibility is not None
        if learned:
            self._check_compatibility()
        for name, value in asdict(self).items():
            if name == "compatibility":
                continue
            what = "an integer" if name == "iterations" else "a number"
            signed = learned and "weight" in name  # a training may turn the sign
            low = "above 0" if "sigma" in name else "of any sign" if signed else "of 0 or more"
            kind = int if name == "iterations" else int | float
            number = isinstance(value, kind) and not isinstance(value, bool) and np.isfinite(value)
            if not number or (value < 0 and not signed) or (value == 0 and "sigma" in name):
                raise InputError(
                    f"CRF {name.replace('_', ' ')}: expected {what} {low}, got {value!r}"
                )

    def changed(self, changes: Mapping[str, Any]) -> CRFSettings:
        """These settings with some of them replaced; None stands for no change."""
        names = [field.name for field in fields(self)]
        if unknown := [name for name in changes if name not in names]:
            raise InputError(
                f"CRF settings: unknown {', '.join(unknown)}; expected {', '.join(names)}"
            )
        return replace(self, **{k: v for k, v in changes.items() if v is not None})

    @classmethod
    def from_toml(cls, path: str | Path) -> CRFSettings:
        """The settings in the table [crf] of a file; what it leaves out is the default.

        Raises InputError: missing or unreadable file, no such table, unknown names, bad values.
        """
        try:
            stored = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; check the name and the folder") from None
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{path}: cannot be read as TOML ({reason})") from error
        if not isinstance(stored.get("crf"), dict):
            raise InputError(f"{path}: has no table [crf], as deeplab tune-crf writes it")
        try:
            return cls().changed(stored["crf"])
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def to_toml(self) -> str:
        """A TOML text with the table [crf], which `from_toml` reads."""
        return tomli_w.dumps({"crf": {k: v for k, v in asdict(self).items() if v is not None}})

    @classmethod
    def of(cls, layer: crf.DenseCRF) -> CRFSettings:
        """The settings of a layer that `layer` made, with what it has learned since."""
        gaussian, bilateral = layer.terms
        assert isinstance(gaussian, crf.Gaussian)
        assert isinstance(bilateral, crf.Bilateral)
        matrix = layer.learned.compatibility if layer.learned else layer.compatibility
        return cls(
            layer.iterations,
            gaussian.weight,
            gaussian.sigmas[0],
            bilateral.weight,
            bilateral.sigmas[0],
            bilateral.sigmas[2],
            None if matrix is None else matrix.tolist(),
        )

    def layer(self, num_classes: int, learnable: bool = False) -> crf.DenseCRF:
        """The CRF layer with these settings, on the permutohedral lattice as pydensecrf's."""
        if self.compatibility is not None and len(self.compatibility) != num_classes:
            raise InputError(
                f"CRF compatibility: expected a row for each of {num_classes} classes, "
                f"got {len(self.compatibility)}"
            )
        return crf.DenseCRF(
            num_classes,
            gaussian=crf.Gaussian(self.gaussian_weight, self.gaussian_sigma),
            bilateral=crf.Bilateral(
                self.bilateral_weight, self.bilateral_sigma_xy, self.bilateral_sigma_rgb
            ),
            iterations=self.iterations,
            compatibility="potts" if self.compatibility is None else self.compatibility,
            learnable=learnable,
            learn_sigmas=False if learnable else None,
        )

    def _check_compatibility(self) -> None:
        try:
            matrix = np.asarray(self.compatibility, dtype=np.float64)
        except (TypeError, ValueError):
            matrix = np.empty(0)
        square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0
        if not square or not np.isfinite(matrix).all():
            raise InputError(
                "CRF compatibility: expected a square matrix of finite numbers, one row a class, "
                f"got {self.compatibility!r:.80}"
            )


SCRIBBLES = CRFSettings(5, 3.0, 3.0, 10.0, 80.0, 13.0)
"""pydensecrf's example: strong and wide, because most pixels start without an opinion."""


@dataclass(frozen=True)
class Annotation:
    """Labels for some of a picture's pixels.

    Attributes:
        labels: int64 `[H, W]`, 0 for unsure, k + 1 for label k.
        num_labels: how many labels there are to choose from.
        colours: uint8 `[num_labels, 3]`, the colour of each label; None for class indices.
        notes: what whoever drew it should know about how it was read.
    """

    labels: np.ndarray
    num_labels: int
    colours: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def refine_probabilities(
    probabilities: np.ndarray, image: np.ndarray, settings: CRFSettings | None = None
) -> Prediction:
    """Refine class probabilities on the picture they belong to.

    probabilities: float32 `[C, H, W]`, summing to 1 over the classes; image: RGB, uint8
    `[H, W, 3]`. Values below 1e-5 are raised to it, as pydensecrf's `unary_from_softmax` does.
    """
    layer = (settings or CRFSettings()).layer(len(probabilities))
    logits = torch.from_numpy(np.log(np.clip(probabilities, CLIP, 1.0)))[None]
    with torch.no_grad():
        marginals = layer(
            logits, torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
        )
    return Prediction.of(marginals[0].numpy())


def refine_scribbles(
    annotation: Annotation,
    image: np.ndarray,
    settings: CRFSettings = SCRIBBLES,
    gt_prob: float = 0.7,
) -> Prediction:
    """Spread an annotation over the whole picture.

    image: RGB, uint8 `[H, W, 3]`. gt_prob: how far the annotation is to be trusted, the probability
    of its label where it has one.
    """
    height, width = annotation.labels.shape
    count = annotation.num_labels
    if settings.compatibility is not None:
        raise InputError(
            "CRF compatibility: scribbles have labels of their own, for which no penalties are "
            "known; leave it out"
        )
    if not 1 / count < gt_prob < 1:
        raise InputError(
            f"gt_prob: expected more than 1/labels = {1 / count:.3g}, so that the annotation "
            f"counts for something, and less than 1, got {gt_prob:g}"
        )
    model = densecrf.DenseCRF(height * width, count)
    model.setUnaryEnergy(
        crf_utils.unary_from_labels(annotation.labels, count, gt_prob=gt_prob, zero_unsure=True)
    )
    sigma, sigma_xy, sigma_rgb = (
        settings.gaussian_sigma,
        settings.bilateral_sigma_xy,
        settings.bilateral_sigma_rgb,
    )
    model.addPairwiseEnergy(
        crf_utils.create_pairwise_gaussian((sigma, sigma), (height, width)),
        compat=settings.gaussian_weight,
    )
    model.addPairwiseEnergy(
        crf_utils.create_pairwise_bilateral((sigma_xy,) * 2, (sigma_rgb,) * 3, image, chdim=2),
        compat=settings.bilateral_weight,
    )
    marginals = np.array(model.inference(settings.iterations), dtype=np.float32)
    return Prediction.of(marginals.reshape(count, height, width))


def read_colours(
    path: str | Path, size: tuple[int, int], max_megapixels: float = MAX_MEGAPIXELS
) -> Annotation:
    """An annotation by colours, for a picture of `size` (height, width).

    Each colour is a label, in the order of blue, then green, then red; black, and what is
    transparent, is unsure. A palette counts by its colours, whatever their indices.

    Raises InputError: as `read_image`; for another size than the picture's, 16-bit pixels, fewer
    than two labels or more than 255 (soft edges or JPEG, most likely).
    """
    picture, _ = load_picture(path, max_megapixels)
    _check_annotation_size(path, picture, size)
    if picture.mode == "F" or picture.mode.startswith("I"):
        raise InputError(
            f"{path}: colours of an annotation are 8-bit, this has pixels of type {picture.mode}; "
            "save it as 8-bit PNG, or use --indices if its values are class indices"
        )
    rgba = np.array(picture.convert("RGBA"), np.int64)
    codes = rgba[..., 0] + (rgba[..., 1] << 8) + (rgba[..., 2] << 16)
    codes[rgba[..., 3] == 0] = 0
    colours = np.unique(codes)
    colours = colours[colours != 0]
    if len(colours) > MAX_LABELS:
        raise InputError(
            f"{path}: {len(colours)} colours, at most {MAX_LABELS} labels are possible; draw "
            "without soft edges (antialiasing) and save as PNG, not JPEG"
        )
    if len(colours) < 2:
        raise InputError(
            f"{path}: {len(colours)} label (colours other than black, which means unsure); at "
            "least two are needed: mark the background in a colour of its own too"
        )
    labels = np.where(codes == 0, 0, np.searchsorted(colours, codes) + 1)
    rgb = np.stack([colours & 255, (colours >> 8) & 255, colours >> 16], axis=1)
    notes = _reading_notes(picture)
    return Annotation(labels, len(colours), rgb.astype(np.uint8), notes)


def read_indices(
    path: str | Path,
    size: tuple[int, int],
    num_classes: int | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Annotation:
    """An annotation by class indices (VOC's label maps), for a picture of `size` (height, width).

    Pixel k is class k and 255 is unsure, in a palette or grey picture. num_classes: None takes the
    highest index + 1.

    Raises InputError: as `read_image`; for another size than the picture's, a picture of colours,
    fewer than two classes, or an index that num_classes does not allow.
    """
    picture, _ = load_picture(path, max_megapixels)
    _check_annotation_size(path, picture, size)
    if picture.mode not in ("L", "P", "1"):
        raise InputError(
            f"{path}: class indices need an 8-bit grey or palette picture, this one is "
            f"{picture.mode}; save it so, or leave out --indices if its colours are the labels"
        )
    indices = np.array(picture, np.int64)
    sure = indices != UNSURE_INDEX
    highest = int(indices[sure].max(initial=-1))
    count = num_classes if num_classes is not None else highest + 1
    if count < 2 or count > MAX_LABELS:
        raise InputError(
            f"{path}: {count} classes; expected 2 to {MAX_LABELS} (255 means unsure): mark more, "
            "or say how many there are with --classes"
        )
    if highest >= count:
        y, x = np.argwhere(sure & (indices >= count))[0]
        raise InputError(
            f"{path}: class index {indices[y, x]} at row {y}, column {x} is out of range for "
            f"{count} classes (0 to {count - 1}, or 255 for unsure); correct the file or --classes"
        )
    if highest < 0:
        raise InputError(f"{path}: every pixel is unsure (255); mark some of them")
    return Annotation(np.where(sure, indices + 1, 0), count)


def read_probabilities(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Class probabilities from an .npy or .npz file, for a picture of `size` (height, width).

    `[C, H, W]` or `[H, W, C]`, told apart by the picture's size (and, for cubes, by which axis sums
    to 1); of several arrays in an .npz, the one named `probabilities`. Returns float32 `[C, H, W]`.

    Raises InputError: missing, damaged or not such a file; another shape or type; NaN or Inf;
    values that are no probabilities (logits, most likely).
    """
    path = Path(path)
    array = _load_array(path)
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"{path}: expected floating point probabilities, got {array.dtype}; save the softmax "
            "itself, as float32"
        )
    if not np.isfinite(array).all():
        raise InputError(
            f"{path}: {int((~np.isfinite(array)).sum())} of {array.size} values are NaN or Inf; "
            "look for them where the file was made"
        )
    axis = _class_axis(path, array, size)
    probabilities = np.ascontiguousarray(np.moveaxis(array, axis, 0), np.float32)
    if len(probabilities) < 2 or len(probabilities) > MAX_LABELS + 1:
        raise InputError(
            f"{path}: {len(probabilities)} class(es) in shape {list(array.shape)}; expected 2 to "
            f"{MAX_LABELS + 1}"
        )
    sums = probabilities.sum(axis=0)
    if probabilities.min() < -ROUNDING or not np.allclose(sums, 1, atol=ROUNDING):
        raise InputError(
            f"{path}: not probabilities: values from {probabilities.min():.3g} to "
            f"{probabilities.max():.3g}, sums over the classes from {sums.min():.3g} to "
            f"{sums.max():.3g}, expected 0 to 1 and 1; apply a softmax over the classes first"
        )
    return probabilities.clip(min=0)


def _reading_notes(picture: Image.Image) -> tuple[str, ...]:
    """What to say about an annotation that looks like class indices and is read by its colours."""
    if picture.mode in ("P", "PA"):
        return (INDEXED,)
    if picture.mode == "L":
        values = np.unique(np.asarray(picture))
        if values[values != UNSURE_INDEX].max(initial=0) < SMALL_INDEX:
            return (GREY,)
    return ()


def _check_annotation_size(path: str | Path, picture: Image.Image, size: tuple[int, int]) -> None:
    height, width = size
    if (picture.height, picture.width) != size:
        raise InputError(
            f"{path}: the annotation is {picture.width} x {picture.height} pixels, the image "
            f"{width} x {height} (after any EXIF turn); save it at the image's size"
        )


def _load_array(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty (0 bytes); save or copy it again")
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            names = loaded.files
            if len(names) != 1 and "probabilities" not in names:
                raise InputError(
                    f"{path}: arrays {', '.join(names) or '(none)'}; expected one, or one of them "
                    "named 'probabilities'"
                )
            return loaded["probabilities" if "probabilities" in names else names[0]]
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the name and the folder") from None
    except MemoryError:
        raise InputError(f"{path}: not enough memory to load it") from None
    except Exception as error:  # damaged archives raise whatever their parsers meet
        reason = str(error).partition("\n")[0] or type(error).__name__
        if "pickle" in reason:
            reason = "it is neither, or holds Python objects"
        raise InputError(
            f"{path}: cannot be read as .npy or .npz ({reason}); save it with "
            "numpy.savez_compressed"
        ) from error


def _class_axis(path: Path, array: np.ndarray, size: tuple[int, int]) -> int:
    """0 for `[C, H, W]`, 2 for `[H, W, C]`."""
    axes = [
        axis
        for axis in (0, 2)
        if array.ndim == 3 and tuple(np.delete(array.shape, axis)) == tuple(size)
    ]
    if not axes:
        height, width = size
        raise InputError(
            f"{path}: shape {list(array.shape)} does not fit the image, {height} high and {width} "
            f"wide: expected [classes, {height}, {width}] or [{height}, {width}, classes]; resize "
            "or transpose the probabilities, or check that they belong to this image"
        )
    if len(axes) == 2:
        axes = [axis for axis in axes if np.allclose(array.sum(axis=axis), 1, atol=ROUNDING)]
        if len(axes) != 1:
            raise InputError(
                f"{path}: shape {list(array.shape)} could be [C, H, W] or [H, W, C] and the sums "
                "do not tell; save it as [C, H, W] of an image that is not as high as it has "
                "classes"
            )
    return axes[0]
