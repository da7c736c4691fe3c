"""Pictures with labels and a network's scores of them: what compare_accuracy.py refines.

scenes   generated ones that no training has seen, and the shipped network
CamVid   photographs of streets, beside the checkout where they are. No weights for them come
         with the project: the scores are made of the labels, as a network of stride 8 blurs
         them, with noise that makes some regions wrong
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from machine import ROOT
from PIL import Image
from torch import Tensor

import crf
from deeplab.crf_settings import CRFSettings
from deeplab.data import scenes
from deeplab.data.datasets import IGNORE, open_dataset
from deeplab.predict import network_scores
from deeplab.weights import SHIPPED, load_model, read_metadata

CAMVID = ROOT.parent / "shared" / "data" / "camvid"
CAMVID_CLASSES, CAMVID_SIZE = 11, (360, 480)
CONFIDENCE, NOISE = 6.0, 1.7  # of the scores that are made of labels
STRIDE = 8
BAND = 4  # pixels from a boundary, at full size


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size.

    Attributes:
        images: uint8 `[B, 3, H, W]`.
        labels: int64 `[B, H, W]`, 255 where a pixel does not count.
        logits: float32 `[B, C, H, W]`.
        settings: of the CRF, whose sigma_xy are in these pixels.
        band: pixels near a boundary, for the trimap.
        source: what the pictures and the scores are.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    settings: CRFSettings
    band: int
    source: str

    def smaller(self, factor: int) -> "Pictures":
        """A `factor`-th as wide and high, sigmas too: small enough for all pairs of pixels."""
        height, width = (side // factor for side in self.labels.shape[1:])
        size = height, width
        images = F.interpolate(self.images.float(), size, mode="area").round().byte()
        labels = F.interpolate(self.labels[:, None].float(), size, mode="nearest")[:, 0].long()
        logits = F.interpolate(self.logits, size, mode="area")
        smooth, appearance = self.settings.gaussian, self.settings.bilateral
        assert smooth is not None
        assert appearance is not None
        assert isinstance(appearance.sigma_xy, float)
        # The smoothness is of neighbours, at any size.
        wide = crf.Bilateral(appearance.weight, appearance.sigma_xy / factor, appearance.sigma_rgb)
        settings = CRFSettings(self.settings.iterations, smooth, wide)
        band = max(1, self.band // factor)
        return Pictures(images, labels, logits, settings, band, self.source)


def of_scenes(count: int, side: int = 321) -> Pictures:
    """Generated scenes and what the shipped network says of them, with its CRF settings."""
    drawn = [scenes.scene(scenes.TEST_START + i, side) for i in range(count)]
    images = torch.from_numpy(np.stack([each.image for each in drawn])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.stack([each.labels for each in drawn])).long()
    model = load_model(SHIPPED)
    with torch.no_grad():
        logits = torch.cat([network_scores(model, image[None]) for image in images])
    settings = CRFSettings.stored(read_metadata(SHIPPED))
    return Pictures(images.contiguous(), labels, logits, settings, BAND, "generated scenes")


def of_camvid(count: int) -> Pictures:
    """Photographs of the validation set, evenly chosen."""
    data = open_dataset("camvid", CAMVID, "val")
    chosen = [data[i * len(data) // count] for i in range(count)]
    images, labels = _of_one_size([image for image, _ in chosen], [found for _, found in chosen])
    settings = CRFSettings(10, crf.Gaussian(3.0, 3.0), crf.Bilateral(4.0, 49.0, 5.0))
    logits = blurred_scores(labels, CAMVID_CLASSES)
    return Pictures(images, labels, logits, settings, BAND, "CamVid, scores made of its labels")


def blurred_scores(labels: Tensor, classes: int) -> Tensor:
    """Logits `[B, C, H, W]` of labels `[B, H, W]`, as a network of stride 8 gives them.

    The share of each class in a cell of 8x8 pixels, noise that neighbours share, and from there to
    the pixels bilinearly. The same labels give the same scores.
    """
    counted = torch.where(labels == IGNORE, 0, labels)
    shares = F.one_hot(counted, classes).permute(0, 3, 1, 2).float()
    shares *= (labels != IGNORE)[:, None]
    cells = F.avg_pool2d(shares, STRIDE, ceil_mode=True)
    noise = torch.randn(cells.shape, generator=torch.Generator().manual_seed(0))
    noise = F.avg_pool2d(noise, 3, stride=1, padding=1, count_include_pad=False)
    coarse = CONFIDENCE * cells + NOISE / noise.std() * noise
    return F.interpolate(coarse, labels.shape[1:], mode="bilinear", align_corners=True)


def _of_one_size(
    images: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> tuple[Tensor, Tensor]:
    height, width = CAMVID_SIZE
    pictures = [Image.fromarray(each).resize((width, height)) for each in images]
    maps = [
        Image.fromarray(each).resize((width, height), Image.Resampling.NEAREST) for each in labels
    ]
    stacked = torch.from_numpy(np.stack([np.asarray(each) for each in pictures]))
    found = torch.from_numpy(np.stack([np.asarray(each) for each in maps])).long()
    return stacked.permute(0, 3, 1, 2).contiguous(), found
