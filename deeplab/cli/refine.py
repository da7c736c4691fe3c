"""`deeplab refine`: the dense CRF alone, on scribbles, probabilities or activation maps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeplab.cli.shared import options
from deeplab.cli.shared.groups import takes_options
from deeplab.cli.shared.many import PANEL, Done, Job, ManyOptions, run_many
from deeplab.cli.shared.options import option
from deeplab.cli.shared.results import (
    PictureFiles,
    print_notes,
    print_result,
    refuse_among_inputs,
    refuse_to_overwrite,
    result_line,
)
from deeplab.cli.shared.several import reported_once
from deeplab.data import folders, images, outputs
from deeplab.data.annotations import GT_PROB
from deeplab.data.conversions import Conversion, counted
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.refine import Background
    from deeplab.refine_files import FileRefiner, Refined

OWN_COLOURS = (
    "its labels are numbered by its own colours; where files have different colours, only class "
    "indices (--indices) give a class one number"
)


@takes_options
def refine(
    *,
    image_file: Annotated[
        Path, typer.Argument(metavar="IMAGE|FOLDER", help="The photograph, or a folder of them.")
    ],
    given: Annotated[
        Path,
        typer.Argument(
            metavar="ANNOTATION|PROBABILITIES|CAMS|FOLDER",
            help="Scribbles as a picture of the same size, or probabilities or activation maps "
            "(.npz, .npy); or a folder of these.",
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
        int | None,
        option(
            "N",
            "With --indices and activation maps: how many classes, with the background.",
            shown="the highest + 1",
        ),
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
        float | None, option("P", "How far labels are to be trusted.", shown=str(GT_PROB))
    ] = None,
    background_threshold: Annotated[
        str | None,
        option(
            "T[,T]",
            "Of activation maps: the background wins where all of them are below. With two, pixels "
            "on which they do not agree are unsure (255).",
            shown="none",
        ),
    ] = None,
    background_power: Annotated[
        str | None,
        option(
            "A[,A]",
            "Of activation maps: the background's score is (1 - their maximum) to this power. With "
            "two as above.",
            shown="none",
        ),
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
    overlay: Annotated[
        bool, typer.Option("--overlay/--no-overlay", help="Write the overlay beside the labels.")
    ] = True,
    max_megapixels: options.MaxMegapixels = None,
    skip_missing: Annotated[
        bool,
        typer.Option(
            "--skip-missing",
            help="Leave out pictures of which the other folder has nothing.",
            rich_help_panel=PANEL,
        ),
    ] = False,
    many: ManyOptions,
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

    **Activation maps** (CAMs) of a picture's classes, from 0 to 1, as .npy files hold them in the
    pipelines irn ({'keys': classes, 'high_res': [K, H, W]}) and psa ({class: [H, W]}), or as .npz
    with keys and maps. Class k there is label k + 1 here, 0 the background, which
    --background-threshold or --background-power gives a score. CRF options left out are those of
    the pipeline: with a threshold 10 iterations, smoothness 3 / 3 pixels, appearance 10 / 50 pixels
    / 5 levels (irn), with a power appearance 10 / 80 pixels / 13 levels (psa).

    **Folders**: each photograph is refined with the file of its name in the other folder (photo.jpg
    with photo.npy, photo.png or photo_probabilities.npz), several at a time.

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
    deeplab refine JPEGImages softmax --out refined --no-overlay --manifest refined.csv
    deeplab refine JPEGImages cams --skip-missing --background-threshold 0.05,0.3 --out labels
    ```
    """
    from deeplab.distributed import LONGEST, processes
    from deeplab.refine_files import ARRAYS, FileRefiner

    refiner = FileRefiner(
        change_crf=crf.change,
        indices=indices,
        classes=classes,
        colours=colours,
        gt_prob=gt_prob,
        background=_background(background_threshold, background_power),
        max_megapixels=max_megapixels,
    )
    if probabilities and refiner.background is not None and len(refiner.background.numbers) > 1:
        raise InputError("--probabilities: there are none of two backgrounds; give one of them")
    writing = _Writing(out, probabilities, overlay, legend)
    if image_file.is_dir():
        again = "mend that, then go on with --skip-existing"
        many.check_manifest()
        with reported_once(again), processes("cpu", LONGEST) as group:
            with group.together():
                suffixes = (*ARRAYS, *images.SUFFIXES)
                pairs = _pairs(image_file, given, suffixes, many.recursive, skip_missing)
                _check_out(out, image_file, given)
            if group.first:
                print_notes(_left_out(pairs, given))
            run_many(_job(pairs, image_file, given, refiner, writing), many, group)
        return
    many.refuse_for_one()
    if skip_missing:
        raise InputError("--skip-missing: only counts with folders; leave it out")
    start = time.perf_counter()
    result = PictureFiles.at(out, outputs.output_names([image_file])[0])
    refuse_to_overwrite([image_file, given], [result])
    outputs.check_writable(result.labels.parent)
    refined = refiner(image_file, given)
    print_notes([*counted(refined.conversions), *(f"{given}: {note}" for note in refined.notes)])
    writing.write(result, refined)
    seconds = time.perf_counter() - start
    print_result(image_file, refined.prediction, refined.classes, result, seconds)


def _background(threshold: str | None, power: str | None) -> Background | None:
    from deeplab.refine import Background

    if threshold is not None and power is not None:
        raise InputError("--background-threshold, --background-power: give one of them")
    if threshold is not None:
        return Background("threshold", options.numbers("--background-threshold", threshold))
    if power is not None:
        return Background("power", options.numbers("--background-power", power))
    return None


@dataclass(frozen=True)
class _Writing:
    """Where results go, and which."""

    out: Path
    probabilities: bool
    overlay: bool
    legend: bool

    def write(self, result: PictureFiles, refined: Refined) -> None:
        result.write(
            refined.image,
            refined.prediction,
            refined.classes,
            probabilities=self.probabilities,
            overlay=self.overlay,
            legend=self.legend,
        )

    def of(self, name: str) -> PictureFiles:
        """The results of a picture named relative to its folder."""
        return PictureFiles(self.out, Path(name).with_suffix("").as_posix())


def _pairs(
    pictures: Path, given: Path, suffixes: tuple[str, ...], recursive: bool, skip_missing: bool
) -> folders.Pairs:
    """The pairs of two folders; InputError where there are none, or a picture has nothing."""
    if not given.is_dir():
        raise InputError(
            f"{given}: must be a folder like {pictures}, with a file for each of its pictures"
        )
    pairs = folders.pair_by_stem(
        pictures, given, images.SUFFIXES, suffixes, ("", "_probabilities"), recursive
    )
    count = len(pairs.names) + pairs.alone
    below = "" if recursive else "; subfolders are searched with --recursive"
    if not count:
        raise InputError(
            f"{pictures}: the folder holds no picture ({', '.join(images.SUFFIXES)}){below}"
        )
    if pairs.alone and not (skip_missing and pairs.names):
        stem = Path(pairs.first_alone).with_suffix("")
        mend = "; --skip-missing leaves them out" if pairs.names else below
        raise InputError(
            f"{given}: has nothing for {pairs.alone} of {count} pictures, such as "
            f"{pictures / pairs.first_alone} (expected {stem}.npy, {stem}.npz or {stem}.png)"
            f"{mend}"
        )
    return pairs


def _left_out(pairs: folders.Pairs, given: Path) -> Iterator[str]:
    if pairs.alone:
        count = len(pairs.names) + pairs.alone
        yield f"{pairs.alone} of {count} pictures are left out: {given} has nothing for them"
    if pairs.unused:
        yield f"{pairs.unused} of the files in {given} are left out: they are of no picture"


def _check_out(out: Path, *inputs: Path) -> None:
    """InputError where results would be among the inputs, or cannot be written."""
    for folder in inputs:
        refuse_among_inputs(out, folder)
    if out.suffix.lower() == ".png" and not out.is_dir():
        raise InputError(f"--out {out} must be a folder where pictures are of a folder")
    outputs.check_writable(out)


def _job(
    pairs: folders.Pairs, pictures: Path, given: Path, refiner: FileRefiner, writing: _Writing
) -> Job[tuple[str, str]]:
    """What `run_many` does with the pairs."""

    def is_there(names: tuple[str, str]) -> bool:
        return writing.of(names[0]).are_there(writing.probabilities, writing.overlay)

    def found(names: tuple[str, str]) -> folders.Outcome:
        labels = writing.of(names[0]).read_labels(refiner.max_megapixels)
        return folders.Outcome.of(pictures / names[0], labels, refiner.names_of_any)

    def work(batch: Sequence[tuple[str, str]]) -> list[Done]:
        (names,) = batch
        start = time.perf_counter()
        file, other = pictures / names[0], given / names[1]
        result = writing.of(names[0])
        refined = refiner(file, other)
        writing.write(result, refined)
        seconds = time.perf_counter() - start
        own = [OWN_COLOURS] if refined.own_colours else []
        remarks = [Conversion(str(other), note, note) for note in (*refined.notes, *own)]
        conversions = [*refined.conversions, *remarks]
        labels = refined.prediction.labels
        outcome = folders.Outcome.of(file, labels, refiner.names_of_any, seconds, conversions)
        line = result_line(file, refined.prediction, refined.classes, result, seconds)
        return [Done(outcome, line, conversions)]

    return Job(pairs.names, lambda names: pictures / names[0], is_there, found, work, "refined")
