"""`deeplab segment`: pictures through the network and the dense CRF."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress

from deeplab.cli.shared import options
from deeplab.cli.shared.groups import takes_options
from deeplab.cli.shared.network import check_tiles, load_network, torch_device, torch_precision
from deeplab.cli.shared.options import option
from deeplab.cli.shared.results import (
    PictureFiles,
    named_errors,
    print_notes,
    print_result,
    refuse_to_overwrite,
)
from deeplab.data import images, outputs
from deeplab.data.bands import read_picture
from deeplab.data.conversions import counted
from deeplab.errors import InputError

T = TypeVar("T")

SCENES_NOTE = (
    "the weights called scenes know the generated scenes of deeplab.data.scenes only; for "
    "photographs leave out --weights, or give others"
)


@takes_options
def segment(
    *,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...", help="Pictures, folders of pictures, or patterns in quotes."
        ),
    ],
    weights: options.WeightsOptions,
    use_crf: options.UseCRF = True,
    out: options.OutFolder = Path("out"),
    probabilities: options.SaveProbabilities = False,
    threshold: Annotated[
        float | None,
        option("P", "Of two classes: probability from which on a pixel is the second."),
    ] = None,
    max_megapixels: Annotated[
        float | None,
        option(
            "N",
            "Refuse larger pictures (10^6 pixels), before they are decoded.",
            shown="what the memory holds",
        ),
    ] = None,
    views: options.ViewOptions,
    tile: Annotated[
        int | None,
        option(
            "PIXELS",
            "Cut larger pictures into overlapping tiles of at most so many pixels a side.",
            shown="1024 where memory is short",
        ),
    ] = None,
    overlap: options.Overlap = 384,
    precision: options.Precision = "float32",
    device: options.Device = "auto",
    crf: options.CRFOptions,
) -> None:
    """Label every pixel of pictures: network, then dense CRF.

    Without --weights the network is one for photographs, with the 21 classes of PASCAL VOC:
    DeepLab v3 on MobileNetV3 on a CPU (42 MiB), on ResNet-101 on a GPU (233 MiB). Its weights are
    downloaded once; `deeplab weights show NAME` tells from where and under which licence.

    For each picture NAME.jpg the output folder gets NAME_labels.png (a palette PNG whose pixel
    values are the class indices) and NAME_overlay.png (the classes laid over the picture). Grey,
    alpha, palette, CMYK and 16-bit pictures are converted, EXIF rotation is applied; each kind of
    this is said once, counted. All inputs are checked before the first result is written.

    A model of other bands than RGB takes .npy files ([H, W, bands] of uint8, uint16 or float32),
    TIFFs with bands as samples or pages (with tifffile: pip install 'deeplab-triton[bands]') and
    grey pictures, with the values that lie in them; its weights know mean and deviation of each
    band. --crf-bands 3,2,1 chooses what the CRF and the overlay take for red, green and blue;
    with --crf-bands all the CRF compares all bands, for which --bilateral-sigma-rgb has to grow.

    With --scales and --flip the network looks at the picture several times; the probabilities are
    averaged before the CRF.

    CRF options left out are those stored with the weights, or else DeepLab v2's: 10 iterations,
    smoothness 3 / 3 pixels, appearance 4 / 49 pixels / 5 levels.

    Memory grows with the pixels of the largest picture: with the weights called scenes about 0.7 GB
    for each megapixel of a photograph, up to 2 GB of mere noise, and 0.25 GB with --no-crf.
    Pictures that may need more than is free go through network and CRF in overlapping tiles, which
    a note says; with --tile all that are larger do. Then only the picture itself has to fit, at 7
    bytes a pixel. An overlay of more than 50 megapixels is drawn smaller by a whole factor.

    **Examples**

    ```text
    deeplab segment photo.jpg
    deeplab segment photos/ --out results --no-crf
    deeplab segment 'photos/**/*.png' --weights mine.safetensors --probabilities
    deeplab segment photo.jpg --bilateral-sigma-xy 67 --bilateral-sigma-rgb 3
    deeplab segment scene.png --tile 2048 --overlap 512
    deeplab segment photo.jpg --scales 0.5,0.75,1 --flip --crf-settings crf.toml
    ```
    """
    from deeplab.crf_settings import CRFSettings
    from deeplab.predict import TILE, Predictor, as_rgb, check_threshold
    from deeplab.weights import registry

    files = images.find_images(inputs)
    scales = views.numbers()
    if weights.weights_file is None:
        name = registry.for_photographs(torch_device(device).type)
        weights = replace(weights, weights_file=Path(name))
    network, metadata = load_network(weights)
    try:
        check_threshold(threshold, network.num_classes)
    except ValueError as error:
        raise InputError(f"--{error}") from error
    check_tiles(network, scales, tile, overlap)
    network.to(torch_device(device))
    settings = crf.change(CRFSettings.stored(metadata, weights.weights_file))
    layer = settings.refiner(network.num_classes).to(torch_device(device)) if use_crf else None
    predictor = Predictor(
        network,
        layer,
        scales=scales,
        flip=views.flip,
        precision=torch_precision(precision),
        bands=settings.bands,
        threshold=threshold,
        tile="auto" if tile is None else tile,
        overlap=overlap,
    )
    results = [PictureFiles(out, name) for name in outputs.output_names(files)]
    refuse_to_overwrite(files, results)
    outputs.check_writable(out)
    read = partial(read_picture, bands=network.in_channels, max_megapixels=max_megapixels)
    checked, conversions = {}, []
    for file in _progress(files, "checking"):
        image, changed = read(file)
        conversions += changed
        if len(files) == 1:  # several may not fit into memory together
            checked[file] = image
    notes = counted(conversions)
    scenes = weights.weights_file == Path(registry.SCENES)
    print_notes([*notes, SCENES_NOTE] if scenes else notes)

    palette = outputs.full_palette(metadata.get("palette"))
    names = metadata.get("class_names")
    for file, result in _progress(list(zip(files, results, strict=True)), "segmenting"):
        start = time.perf_counter()
        image = checked[file] if file in checked else read(file)[0]
        with named_errors(file):
            three = None if settings.bands == "all" else settings.bands
            shown = as_rgb(network, image, three)
            if tile is None and predictor.in_tiles(image.shape):
                print_notes([f"{file}: in tiles of {TILE} pixels, for want of memory (--tile)"])
            prediction = predictor(image, probabilities=probabilities)
        result.write(shown, prediction, palette, probabilities)
        print_result(file, prediction, names, result, time.perf_counter() - start)


def _progress(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, under a progress bar on standard error when there are several and it is seen."""
    console = Console(stderr=True)
    if len(items) < 2 or not console.is_terminal:
        yield from items
        return
    # Lines that are printed meanwhile go above the bar, but stay on standard output if it is piped.
    with Progress(console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
        yield from progress.track(items, description=what)
