"""`deeplab refine`: the dense CRF alone, on scribbles or on probabilities."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from deeplab.cli.shared import options
from deeplab.cli.shared.groups import takes_options
from deeplab.cli.shared.options import option
from deeplab.cli.shared.results import (
    PictureFiles,
    named_errors,
    print_notes,
    print_result,
    refuse_to_overwrite,
)
from deeplab.data import images, outputs
from deeplab.data.conversions import counted
from deeplab.errors import InputError

GT_PROB = 0.7  # as in pydensecrf's example


@takes_options
def refine(
    *,
    image_file: Annotated[Path, typer.Argument(metavar="IMAGE", help="The photograph.")],
    given: Annotated[
        Path,
        typer.Argument(
            metavar="ANNOTATION|PROBABILITIES",
            help="Scribbles as a picture of the same size, or probabilities (.npz, .npy).",
        ),
    ],
    indices: Annotated[
        bool,
        typer.Option(
            "--indices",
            help="The annotation's pixel values are class indices, 255 unsure (VOC's label maps), "
            "instead of colours.",
        ),
    ] = False,
    classes: Annotated[
        int | None, option("N", "With --indices: how many classes.", shown="the highest + 1")
    ] = None,
    colours: Annotated[
        int | None,
        option(
            "N",
            "Only the N colours that fill the largest areas are labels, the rest is unsure: "
            "for soft (antialiased) edges.",
            shown="all of them",
        ),
    ] = None,
    gt_prob: Annotated[
        float | None, option("P", "How far scribbles are to be trusted.", shown=str(GT_PROB))
    ] = None,
    out: Annotated[
        Path,
        option(
            "DIR|FILE.png",
            "Folder for the results, or the name of the label map; the rest goes beside it.",
        ),
    ] = Path("out"),
    probabilities: options.SaveProbabilities = False,
    legend: options.Legend = True,
    max_megapixels: options.MaxMegapixels = images.MAX_MEGAPIXELS,
    crf: options.CRFOptions,
) -> None:
    """The dense CRF alone: spread scribbles, or sharpen any network's probabilities.

    **Scribbles**: a picture of the photograph's size in which each colour is a label and
    black (or transparent) is unsure. Draw hard edges, save as PNG; --colours mends soft ones. A
    palette picture counts by its colours; with --indices by its values. Black and white alone are a
    mask: background and foreground. Unsure pixels may get any label, and marked ones may change
    theirs (--gt-prob). CRF options left out: 5 iterations, smoothness 3 / 3 pixels, appearance
    10 / 80 pixels / 13 levels, as in pydensecrf's example.

    **Probabilities**: float [C, H, W] or [H, W, C], summing to 1 over the classes, as
    .npy, or as .npz with one array or one named 'probabilities', and class_names and palette if
    they are known (such as deeplab segment --no-crf --probabilities writes). [H, W] is the
    probability of foreground: the classes are background and foreground. CRF options left out: 10
    iterations, smoothness 3 / 3 pixels, appearance 4 / 49 pixels / 5 levels.

    The output folder gets NAME_labels.png (values: the labels from 0 on; palette: the annotation's
    or the .npz file's colours, or VOC's) and NAME_overlay.png, NAME being the photograph's.

    **Examples**

    ```text
    deeplab refine photo.jpg scribbles.png
    deeplab refine photo.jpg scribbles.png --out labels.png
    deeplab refine photo.jpg soft_scribbles.png --colours 3
    deeplab refine photo.jpg softmax.npz --out refined --iterations 5
    deeplab refine photo.jpg softmax.npz --crf-settings crf.toml
    deeplab refine photo.jpg voc_labels.png --indices --classes 21 --gt-prob 0.9
    ```
    """
    from deeplab import refine as crf_alone
    from deeplab.crf_settings import CRFSettings
    from deeplab.data import annotations

    start = time.perf_counter()
    softmax_given = given.suffix.lower() in (".npy", ".npz")
    if softmax_given and indices:
        raise InputError(f"--indices: {given} holds probabilities, not an annotation; leave it out")
    if softmax_given and gt_prob is not None:
        raise InputError(
            f"--gt-prob {gt_prob:g}: {given} holds probabilities, which are trusted as they are; "
            "it only counts with scribbles, leave it out"
        )
    if colours is not None and (softmax_given or indices):
        raise InputError(
            f"--colours {colours}: only counts with an annotation by colours; leave it out"
        )
    if classes is not None and not indices:
        raise InputError(f"--classes {classes}: only counts with --indices; leave it out")
    settings = crf.change(CRFSettings() if softmax_given else crf_alone.SCRIBBLES)
    result = PictureFiles.at(out, outputs.output_names([image_file])[0])
    refuse_to_overwrite([image_file, given], [result])
    outputs.check_writable(result.labels.parent)
    image, conversions = images.read_image(image_file, max_megapixels)
    size = (image.shape[0], image.shape[1])
    palette = outputs.voc_palette()
    read: annotations.Annotation | annotations.Probabilities
    if softmax_given:
        read = annotations.read_probabilities(given, size)
        palette = outputs.full_palette(read.colours)
        with named_errors(given):
            prediction = crf_alone.refine_probabilities(read.values, image, settings)
    else:
        if indices:
            read = annotations.read_indices(given, size, classes, max_megapixels)
        else:
            read = annotations.read_colours(given, size, max_megapixels, colours)
        if read.colours is not None:
            palette = outputs.full_palette(read.colours)
        trust = GT_PROB if gt_prob is None else gt_prob
        with named_errors(given):
            prediction = crf_alone.refine_scribbles(read, image, settings, trust)
    print_notes([*counted(conversions), *(f"{given}: {note}" for note in read.notes)])
    named = outputs.NamedPalette(palette, read.names)
    result.write(image, prediction, named, probabilities, legend)
    print_result(image_file, prediction, named, result, time.perf_counter() - start)
