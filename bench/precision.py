"""How many labels differ when the network computes in bfloat16: without a CRF and with it.

    python bench/precision.py                                   # the shipped network, its scenes
    python bench/precision.py --weights mine.safetensors --pictures 'photos/*.jpg'

Each picture goes through a `Predictor` in float32 and in bfloat16; a pixel agrees where both give
it the same label. bfloat16 works, slowly, on processors that do not compute in it, and rounds there
as everywhere. Bar: 99.5% of all pixels, with the CRF and without.
"""

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deeplab.crf_settings import CRFSettings
from deeplab.data.scenes import scene
from deeplab.predict import Predictor
from deeplab.weights import SHIPPED, load_model, read_metadata

BAR = 0.995
FIRST_SCENE = 20_000_000  # none that the network was trained or scored on


def agreement(weights: Path, images: Sequence[np.ndarray]) -> dict[str, Any]:
    """The share of equal labels over all pixels, and on the picture where it is least."""
    network = load_model(weights)
    layer = CRFSettings.stored(read_metadata(weights)).refiner(network.num_classes)
    exact, half = (Predictor(network, layer, precision=p) for p in (torch.float32, torch.bfloat16))
    equal: dict[str, list[float]] = {"network": [], "with CRF": []}
    pixels = [image.shape[0] * image.shape[1] for image in images]
    for image in images:
        for name, one, other in zip(equal, exact.labels(image), half.labels(image), strict=True):
            equal[name].append(float(np.mean(one == other)))
    return {
        name: {"all": float(np.average(shares, weights=pixels)), "least": min(shares)}
        for name, shares in equal.items()
    }


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write the record; 1 where the bar is missed."""
    from report import RECORDS, new_record, write_record

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=SHIPPED, metavar="FILE", help="a file")
    parser.add_argument("--pictures", metavar="PATTERN", help="default: generated scenes")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="default: 16")
    parser.add_argument("--out", type=Path, default=RECORDS, metavar="DIR", help="for the record")
    options = parser.parse_args(arguments)
    if options.pictures is None:
        images = [scene(FIRST_SCENE + i).image for i in range(options.count)]
    else:
        files = sorted(glob.glob(options.pictures, recursive=True))
        files = files[:: max(1, len(files) // options.count)][: options.count]
        images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    if not images:
        parser.error(f"{options.pictures} must name pictures")
    shares = agreement(options.weights, images)
    for name, found in shares.items():
        print(f"{name}: {found['all']:.4%} of labels equal, {found['least']:.4%} on one picture")
    passed = all(found["all"] >= BAR for found in shares.values())
    facts = {"weights": options.weights.name, "pictures": len(images), "bar": BAR, "passed": passed}
    command = ["bench/precision.py", "--weights", options.weights.name]
    command += ["--count", str(options.count)]
    if options.pictures is not None:  # without the folders of this machine
        command += ["--pictures", "/".join(Path(options.pictures).parts[-4:])]
    record = new_record(command, ["precision"], torch.get_num_threads())
    record["comparisons"] = [{"name": "precision", **facts, "equal": shares}]
    print(f"record: {write_record(record, options.out)}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
