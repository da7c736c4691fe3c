"""The dense CRF on its own: scribbles or anyone's probabilities, refined on the photograph.

    energy:   E(x) = sum_i -log P(x_i) + sum_{i<j} [x_i != x_j] (w1 k_bilateral + w2 k_gaussian)
    answer:   argmax of the mean-field marginals

Probabilities come from a network. Scribbles are labels for some pixels: there, P = gt_prob for the
label and the rest shared by the others; elsewhere, "unsure", all labels are equally likely. This is
the flow of pydensecrf's example `inference.py`, down to the order of the features (y, x, r, g, b),
so that the same files give the same labels. `deeplab.data.annotations` reads the files.

Sources: Krähenbühl and Koltun, NIPS 2011; DeepLab v2, section 3.3; the pydensecrf examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

import crf
from crf.pydensecrf import densecrf
from crf.pydensecrf import utils as crf_utils
from deeplab import toml
from deeplab.data.annotations import Annotation
from deeplab.errors import InputError
from deeplab.predict import Prediction

CLIP = 1e-5
"""Probabilities below this count as this, so that no label is ruled out for good."""


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
            number = isinstance(value, kind) and not isinstance(value, bool) and _is_float32(value)
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
            stored = toml.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; check the name and the folder") from None
        except (OSError, ValueError) as error:
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
        gaussian, bilateral = layer.potentials
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


def _is_float32(value: float) -> bool:
    """Whether a number is finite in the precision that the CRF computes in."""
    return abs(value) <= float(np.finfo(np.float32).max)


SCRIBBLES = CRFSettings(5, 3.0, 3.0, 10.0, 80.0, 13.0)
"""pydensecrf's example: strong and wide, because most pixels start without an opinion."""


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
