"""`deeplab segment`: pictures through the network and the dense CRF."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress

from deeplab.cli.shared import options
from deeplab.cli.shared.groups import takes_options
from deeplab.cli.shared.many import Done, Job, ManyOptions, run_many
from deeplab.cli.shared.network import (
    check_tiles,
    load_network,
    refuse_crf,
    torch_device,
    torch_precision,
)
from deeplab.cli.shared.options import option
from deeplab.cli.shared.results import (
    PictureFiles,
    named_errors,
    print_notes,
    refuse_among_inputs,
    refuse_to_overwrite,
    result_line,
)
from deeplab.data import folders, images, outputs
from deeplab.data import polygons as polygon_files
from deeplab.data.bands import read_picture
from deeplab.data.conversions import counted
from deeplab.errors import InputError

T = TypeVar("T")
Polygons = StrEnum("Polygons", ["coco", "geojson"])

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
    legend: options.Legend = True,
    polygons: Annotated[
        Polygons | None,
        typer.Option(
            help="Write each connected region as a polygon too: of all pictures OUT/coco.json, or "
            "of each NAME_polygons.geojson. Needs rasterio.",
            show_default=False,
        ),
    ] = None,
    threshold: options.Threshold = None,
    max_megapixels: options.MaxMegapixels = None,
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
    many: ManyOptions,
    crf: options.CRFOptions,
) -> None:
    """Label every pixel of pictures: network, then dense CRF.

    Without --weights the network is one for photographs, with the 21 classes of PASCAL VOC:
    DeepLab v3 on MobileNetV3 on a CPU (42 MiB), on ResNet-101 on a GPU (233 MiB). Its weights are
    downloaded once; `deeplab weights show NAME` tells from where and under which licence.

    For each picture NAME.jpg the output folder gets NAME_labels.png (a palette PNG whose pixel
    values are the class indices) and NAME_overlay.png (the classes laid over the picture, with a
    legend below). Grey, alpha, palette, CMYK and 16-bit pictures are converted, EXIF rotation is
    applied; each kind of this is said once, counted. All inputs are checked before the first result
    is written, unless --skip-broken leaves out those that cannot be used. Of weights of several
    labels a pixel (they take --no-crf) it gets labels/CLASS/NAME.png, a mask of 0 and 1 for each
    class, as a folder of data has them.

    A model of other bands than RGB takes .npy files ([H, W, bands] of uint8, uint16 or float32),
    TIFFs with bands as samples or pages (with tifffile: pip install 'deeplab-triton[bands]') and
    grey pictures, with the values that lie in them; its weights know mean and deviation of each
    band. --crf-bands 3,2,1 chooses what the CRF and the overlay take for red, green and blue;
    with --crf-bands all the CRF compares all bands, for which --bilateral-sigma-rgb has to grow.

    With --polygons coco or geojson each connected region becomes a polygon along the borders of its
    pixels, in pixels from the top left corner, y down; the class called background has none. Of
    COCO, a region with holes is a run-length code, category ids are the class indices, pictures are
    named below the folder that they share, and OUT/coco.json is written last.

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
    deeplab segment photos/ --recursive --skip-broken --skip-existing --manifest done.csv
    deeplab segment 'photos/**/*.png' --weights mine.safetensors --probabilities
    deeplab segment photos/ --polygons coco
    deeplab segment photo.jpg --bilateral-sigma-xy 67 --bilateral-sigma-rgb 3
    deeplab segment scene.png --tile 2048 --overlap 512
    deeplab segment photo.jpg --scales 0.5,0.75,1 --flip --crf-settings crf.toml
    ```
    """
    from deeplab.crf_settings import CRFSettings
    from deeplab.predict import TILE, Predictor, as_rgb, check_threshold
    from deeplab.weights import registry

    if polygons is not None:
        polygon_files.require_rasterio()
    files = images.find_images(inputs, many.recursive)
    scales = views.numbers()
    if weights.weights_file is None:
        name = registry.for_photographs(torch_device(device).type)
        weights = replace(weights, weights_file=Path(name))
    network, metadata = load_network(weights)
    try:
        check_threshold(threshold, network)
    except ValueError as error:
        raise InputError(f"--{error}") from error
    refuse_crf(network, use_crf)
    if network.multilabel and polygons is not None:
        raise InputError("--polygons must be left out for several labels a pixel")
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
    classes = outputs.NamedPalette(
        outputs.full_palette(metadata.get("palette")), metadata.get("class_names")
    )
    every_class = [classes.name(index) for index in range(network.num_classes)]
    masks = outputs.folder_names(every_class) if network.multilabel else ()
    names = _names_below(files, inputs, out) if many.recursive else outputs.output_names(files)
    refuse_to_overwrite(files, (PictureFiles(out, name, masks) for name in names))
    outputs.check_writable(out)
    read = partial(read_picture, bands=network.in_channels, max_megapixels=max_megapixels)
    pairs = list(zip(files, names, strict=True))

    def files_of(pair: tuple[Path, str]) -> PictureFiles:
        return PictureFiles(out, pair[1], masks)

    def is_there(pair: tuple[Path, str]) -> bool:
        result = files_of(pair)
        drawn = polygons is not Polygons.geojson or result.polygons.exists()
        return drawn and result.are_there(probabilities)

    checked, conversions = {}, []
    for pair in _progress([] if many.skip_broken else pairs, "checking"):
        if many.skip_existing and is_there(pair):
            continue
        image, changed = read(pair[0])
        conversions += changed
        if len(files) == 1:  # several may not fit into memory together
            checked[pair[0]] = image, changed
    notes = counted(conversions)
    scenes = weights.weights_file == Path(registry.SCENES)
    print_notes([*notes, SCENES_NOTE] if scenes else notes)

    def work(pair: tuple[Path, str]) -> Done:
        start = time.perf_counter()
        file, result = pair[0], files_of(pair)
        image, changed = checked[file] if file in checked else read(file)
        with named_errors(file):
            three = None if settings.bands == "all" else settings.bands
            shown = as_rgb(network, image, three)
            if tile is None and predictor.in_tiles(image.shape):
                print_notes([f"{file}: in tiles of {TILE} pixels, for want of memory (--tile)"])
            prediction = predictor(image, probabilities=probabilities)
        result.write(shown, prediction, classes, probabilities=probabilities, legend=legend)
        if polygons is Polygons.geojson:
            polygon_files.write_geojson(result.polygons, prediction.labels, classes)
        seconds = time.perf_counter() - start
        return Done(
            folders.Outcome.of(file, prediction.labels, classes.names, seconds, changed),
            result_line(file, prediction, classes, result, seconds),
            changed if many.skip_broken else (),  # else said before
        )

    if len(files) == 1 and many == ManyOptions():
        typer.echo(work(pairs[0]).line)
    else:

        def found(pair: tuple[Path, str]) -> folders.Outcome:
            labels = files_of(pair).read_labels(max_megapixels)
            return folders.Outcome.of(pair[0], labels, classes.names)

        # One at a time, on all cores: the network computes in threads of its own.
        job = Job(pairs, lambda pair: pair[0], is_there, found, work, "segmented")
        run_many(job, many, workers=1)
    if polygons is Polygons.coco:
        _write_coco(out / "coco.json", pairs, files_of, classes, network.num_classes)


def _write_coco(
    path: Path,
    pairs: Sequence[tuple[Path, str]],
    files_of: Callable[[tuple[Path, str]], PictureFiles],
    classes: outputs.NamedPalette,
    count: int,
) -> None:
    """All label maps as one file; pictures are named below the folder that they share."""
    labelled = [pair for pair in pairs if files_of(pair).labels.exists()]  # others were broken
    shared = os.path.commonpath([file.absolute().parent for file, _ in labelled])
    pictures = (
        (pair[0].absolute().relative_to(shared).as_posix(), files_of(pair).read_labels(math.inf))
        for pair in _progress(labelled, "polygons")
    )
    polygon_files.write_coco(path, pictures, classes, count)
    typer.echo(f"polygons -> {path}")


def _names_below(files: Sequence[Path], inputs: Sequence[str], out: Path) -> list[str]:
    """As `output_names`, each in the subfolder that its file has in the folder that is given."""
    root = Path(inputs[0])
    if len(inputs) > 1 or not root.is_dir():
        raise InputError("--recursive: only counts with one folder; leave it out, or give a folder")
    refuse_among_inputs(out, root)
    names: list[str] = []
    for parent, there in groupby(files, lambda file: file.parent):
        below = parent.relative_to(root)
        names += [(below / name).as_posix() for name in outputs.output_names(list(there))]
    return names


def _progress(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, under a progress bar on standard error when there are several and it is seen."""
    console = Console(stderr=True)
    if len(items) < 2 or not console.is_terminal:
        yield from items
        return
    # Lines that are printed meanwhile go above the bar, but stay on standard output if it is piped.
    with Progress(console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
        yield from progress.track(items, description=what)
