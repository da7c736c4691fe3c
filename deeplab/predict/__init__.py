"""From pictures to class probabilities: the network, and a dense CRF where one is wanted.

    P = softmax(network(preprocess(image)))          or          Q = CRF(logits, image)

Source: DeepLab v2 (TPAMI 2018), section 3 and figure 1: the network's scores are brought to the
picture's size before the fully connected CRF refines them.

`Predictor` holds a model and how it is to be used, and takes pictures; `predict` is one picture's
worth of it. Either looks at several views of a picture (`views.py`) where that is asked for; the
predictor takes large pictures in tiles (`tiles.py`). `BatchSegmenter` takes files and gives label
maps, as rows of a data set on a cluster (`batches.py`).
"""

from deeplab.precision import PRECISIONS, Precision
from deeplab.predict.batches import BatchSegmenter
from deeplab.predict.limits import BYTES_A_PIXEL
from deeplab.predict.predictor import (
    CRF,
    OVERLAP,
    TILE,
    Prediction,
    Predictor,
    Tile,
    check_threshold,
    predict,
)
from deeplab.predict.tiles import Tiling
from deeplab.predict.views import (
    as_batch,
    as_levels,
    as_rgb,
    at_scale,
    check_scales,
    network_scores,
)

__all__ = [
    "BYTES_A_PIXEL",
    "CRF",
    "OVERLAP",
    "PRECISIONS",
    "TILE",
    "BatchSegmenter",
    "Precision",
    "Prediction",
    "Predictor",
    "Tile",
    "Tiling",
    "as_batch",
    "as_levels",
    "as_rgb",
    "at_scale",
    "check_scales",
    "check_threshold",
    "network_scores",
    "predict",
]
