"""The weights that cases run with, and what they say of a picture: an oracle by another way in."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from commands import STORED_CRF
from PIL import Image

from campaign.case import require
from deeplab.crf_settings import CRFSettings
from deeplab.model import DeepLab, build
from deeplab.predict import Predictor
from deeplab.weights import save_weights

CLASSES = ("ground", "tree", "water")
WEIGHTS = "../shared/weights.safetensors"  # as seen from a case's folder


def write_weights(shared: Path) -> None:
    """Random weights of the small model, for three classes, decided enough to draw boundaries."""
    save_weights(
        network(),
        shared / "weights.safetensors",
        {
            "class_names": list(CLASSES),
            "palette": [[0, 0, 0], [9, 200, 9], [9, 9, 200]],
            "crf": STORED_CRF,
        },
    )


@lru_cache
def network() -> DeepLab:
    torch.manual_seed(0)
    model = build("deeplab_v2_small", num_classes=len(CLASSES))
    with torch.no_grad():
        model.head.classifier.weight.mul_(0.2)
        model.head.classifier.bias.copy_(torch.zeros_like(model.head.classifier.bias))
    return model.eval()


def labels_of(rgb: np.ndarray, crf: CRFSettings | None = None) -> np.ndarray:
    """What the network, and a CRF with these settings, say of a picture."""
    layer = None if crf is None else crf.layer(len(CLASSES))
    return Predictor(network(), layer)(rgb).labels


def stored_crf() -> CRFSettings:
    return CRFSettings().changed(STORED_CRF)


def label_map(path: Path) -> np.ndarray:
    """The class indices of a label map that was written."""
    require(path.is_file(), f"{path.name} is missing")
    with Image.open(path) as picture:
        require(picture.mode == "P", f"{path.name}: mode {picture.mode}, expected a palette")
        return np.asarray(picture)


def check_labels(path: Path, expected: np.ndarray) -> None:
    """The file has these labels, pixel for pixel, and an overlay, a legend below it, beside it."""
    found = label_map(path)
    require(found.shape == expected.shape, f"{path.name}: {found.shape}, expected {expected.shape}")
    wrong = int((found != expected).sum())
    require(wrong == 0, f"{path.name}: {wrong} of {found.size} labels differ from the network's")
    with Image.open(path.with_name(path.name.replace("_labels", "_overlay"))) as overlay:
        height, width = expected.shape
        fits = overlay.height >= height and overlay.width >= width
        require(fits, "the overlay is smaller than the labels")
