"""`deeplab segment`: pictures through the network and the dense CRF."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from deeplab.cli.segment_scene import SceneFiles, Scenes, scenes_among
from deeplab.cli.segment_video import VideoOptions, segment_videos
from deeplab.cli.shared import options
from deeplab.cli.shared.groups import takes_options
from deeplab.cli.shared.many import PANEL, Done, Job, ManyOptions, run_many
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
from deeplab.cli.shared.several import reported_once
from deeplab.data import folders, images, outputs
from deeplab.data import polygons as polygon_files
from deeplab.data.bands import read_picture
from deeplab.data.conversions import Conversion, counted
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.predict import Prediction, Predictor

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
            metavar="IMAGE...", help="Pictures or videos, folders of them, or patterns in quotes."
        ),
    ],
    weights: options.WeightsOptions,
    use_crf: options.UseCRF = True,
    out: options.OutFolder = Path("out"),
    probabilities: options.SaveProbabilities = False,
    legend: options.Legend = True,
    bands: Annotated[
        str | None,
        option(
            "N,N,...",
            "Of GeoTIFFs, the bands that the network takes, in its order, counted from 1.",
            shown="red, green and blue; else all",
        ),
    ] = None,
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
    compile: options.Compile = False,
    device: options.Device = "auto",
    batch: Annotated[
        int,
        option(
            "N",
            "Pictures of one size among N neighbours go through the network together; sums may "
            "then be rounded otherwise.",
            panel=PANEL,
        ),
    ] = 1,
    video: VideoOptions,
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

    A GeoTIFF (a TIFF with a reference system or a transform; needs rasterio) is read and written in
    windows, in tiles of 1024 pixels unless --tile says otherwise, so that memory does not grow with
    its area. It gets NAME_labels.tif, a Cloud Optimized GeoTIFF of class indices with a palette, of
    the same place, and 255 as nodata where nothing was observed; the overlay as PNG; with
    --probabilities NAME_probabilities.tif, float32; with --polygons geojson corners in longitude
    and latitude. Values are taken as they lie; alpha is a mask; --bands 4,3,2 chooses bands.

    With --polygons coco or geojson each connected region becomes a polygon along the borders of its
    pixels, in pixels from the top left corner, y down; the class called background has none. Of
    COCO, a region with holes is a run-length code, category ids are the class indices, pictures are
    named below the folder that they share, and OUT/coco.json is written last.

    Videos (.mp4, .mov, .m4v, .mkv, .webm, .avi; with PyAV: pip install 'deeplab-triton[video]') get
    NAME_overlay.mp4, without sound and with a legend of all classes, and their labels without loss.
    Each frame is segmented by itself: a run that was killed goes on with --skip-existing where it
    ended, and its results are the same. Of a damaged video --skip-broken takes what can be decoded.
    A folder gives its videos where it holds no picture.

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
    deeplab segment clip.mp4 --every 5 --video-labels png
    deeplab segment sentinel.tif --bands 4,3,2 --polygons geojson
    deeplab segment photo.jpg --scales 0.5,0.75,1 --flip --crf-settings crf.toml
    torchrun --nproc-per-node 4 -m deeplab segment photos/ --skip-existing --manifest done.csv
    ```
    """
    from deeplab.crf_settings import CRFSettings
    from deeplab.distributed import LONGEST, processes
    from deeplab.predict import Predictor, check_threshold
    from deeplab.weights import registry

    if polygons is not None:
        polygon_files.require_rasterio()
    if batch < 1:
        raise InputError(f"--batch must be 1 or more, not {batch}")
    many.check_manifest()
    device_type = torch_device(device).type
    scales, again = views.numbers(), "mend that, then go on with --skip-existing"
    with reported_once(again), processes(device, LONGEST) as group:
        with group.together():
            files = images.find_images(inputs, many.recursive, videos=True)
            given = {"--probabilities": probabilities, "--polygons": polygons, "--batch": batch > 1}
            refused = [name for name, value in given.items() if value]
            are_videos = video.apply_to(files, refused, group.world)
            scenes = scenes_among(files, bands is not None, polygons is Polygons.coco)
            if weights.weights_file is None:
                weights = replace(weights, weights_file=Path(registry.for_photographs(device_type)))
            network, metadata = load_network(weights)
            try:
                check_threshold(threshold, network)
            except ValueError as error:
                raise InputError(f"--{error}") from error
            refuse_crf(network, use_crf)
            if network.multilabel and polygons is not None:
                raise InputError("--polygons must be left out for several labels a pixel")
            check_tiles(network, scales, tile, overlap)
            settings = crf.change(CRFSettings.stored(metadata, weights.weights_file))
            predictor = Predictor(
                network,
                settings.refiner(network.num_classes) if use_crf else None,
                scales=scales,
                flip=views.flip,
                precision=torch_precision(precision),
                compile=compile,
                device=group.device,
                bands=settings.bands,
                threshold=threshold,
                tile="auto" if tile is None else tile,
                overlap=overlap,
                at_once=min(many.at_once(group) * group.beside, len(files)),
            )
            palette = outputs.full_palette(metadata.get("palette"))
            classes = outputs.NamedPalette(palette, metadata.get("class_names"))
            geotiffs = Scenes(
                scenes,
                predictor,
                classes,
                bands=None if bands is None else options.whole_numbers("--bands", bands),
                max_megapixels=max_megapixels,
                probabilities=probabilities,
                legend=legend,
                polygons=polygons is not None,
            )
            work = _Work(
                predictor, classes, out, probabilities, legend, polygons, max_megapixels, geotiffs
            )
            below = many.recursive
            names = _names_below(files, inputs, out) if below else outputs.output_names(files)
            pictures = list(zip(files, names, strict=True))
            if are_videos:
                outputs.check_writable(out)
                if weights.weights_file == Path(registry.SCENES):
                    print_notes([SCENES_NOTE])
                segment_videos(
                    *(pictures, predictor, classes, out, video, many, group),
                    legend=legend,
                    max_megapixels=max_megapixels,
                )
                return
            refuse_to_overwrite(files, map(work.files_of, pictures))
            outputs.check_writable(out)
            alone = len(pictures) == 1 and group.world == 1 and many == ManyOptions()
            read, conversions = None, []
            if alone and files[0] in scenes:
                conversions = geotiffs.check(files[0])
            elif alone:
                read = [work.read(files[0])]
                conversions = read[0][1]
            elif not many.skip_broken:
                own = pictures[group.rank :: group.world]
                if many.skip_existing:
                    own = [picture for picture in own if not work.is_there(picture)]
                conversions = _check(own, work, many.at_once(group))
        converted = group.gather(conversions)
        if group.first:
            of_scenes = weights.weights_file == Path(registry.SCENES)
            print_notes([*counted(chain(*converted)), *([SCENES_NOTE] if of_scenes else [])])
        if alone:
            (answer,) = work.segment(pictures, True, read)
            if isinstance(answer, InputError):
                raise answer
            typer.echo(answer.line)
        else:
            segment_batch = partial(work.segment, told=not many.skip_broken)
            job = Job(
                *(pictures, _file, work.is_there, work.found, segment_batch, "segmented"),
                batch=batch,
            )
            run_many(job, many, group)
        if polygons is Polygons.coco and group.first:
            _write_coco(out / "coco.json", pictures, work)


Picture = tuple[Path, str]  # the file, and the name of its results
Read = tuple[np.ndarray, list[Conversion]]


def _file(picture: Picture) -> Path:
    return picture[0]


@dataclass(frozen=True)
class _Work:
    """How pictures become results; all of it may run in several threads."""

    predictor: Predictor
    classes: outputs.NamedPalette
    out: Path
    probabilities: bool
    legend: bool
    polygons: Polygons | None
    max_megapixels: float | None
    scenes: Scenes

    def files_of(self, picture: Picture) -> PictureFiles:
        """Where the results go."""
        if picture[0] in self.scenes:
            return SceneFiles(self.out, picture[1])
        network = self.predictor.model
        names = [self.classes.name(index) for index in range(network.num_classes)]
        masks = outputs.folder_names(names) if network.multilabel else ()
        return PictureFiles(self.out, picture[1], masks)

    def is_there(self, picture: Picture) -> bool:
        """Whether the results are on disk."""
        result = self.files_of(picture)
        drawn = self.polygons is not Polygons.geojson or result.polygons.exists()
        return drawn and result.are_there(self.probabilities)

    def found(self, picture: Picture) -> folders.Outcome:
        """What the results on disk say."""
        if picture[0] in self.scenes:
            return self.scenes.found(picture[0], self.files_of(picture))
        labels = self.files_of(picture).read_labels(self.max_megapixels)
        return folders.Outcome.of(picture[0], labels, self.classes.names)

    def read(self, file: Path) -> Read:
        """A picture as the network takes it, and what was converted."""
        return read_picture(file, self.predictor.model.in_channels, self.max_megapixels)

    def check(self, file: Path) -> list[Conversion]:
        """What reading converts; InputError where it cannot be read."""
        return self.scenes.check(file) if file in self.scenes else self.read(file)[1]

    def segment(
        self, batch: Sequence[Picture], told: bool, read: Sequence[Read] | None = None
    ) -> list[Done | InputError]:
        """As `_segment_together`, with scenes, each by itself, among the pictures."""
        plain = [picture for picture in batch if picture[0] not in self.scenes]
        answers = iter(self._segment_together(plain, told, read) if plain else ())
        return [
            _attempt(self.scenes.work, picture[0], self.files_of(picture), told)
            if picture[0] in self.scenes
            else next(answers)
            for picture in batch
        ]

    def _segment_together(
        self, batch: Sequence[Picture], told: bool, read: Sequence[Read] | None
    ) -> list[Done | InputError]:
        """Pictures read, through the network together, and their results written.

        told: whether it has been said what reading converts.
        read: the pictures, where they are read already.

        Returns the answer for each.
        """
        from deeplab.predict import as_rgb

        start = time.perf_counter()
        inputs = [_attempt(self.read, file) for file, _ in batch] if read is None else read
        predictions = iter(self._predictions([file for file, _ in batch], inputs))

        def write(picture: Picture, image: np.ndarray, conversions: list[Conversion]) -> Done:
            file, result, prediction = picture[0], self.files_of(picture), next(predictions)
            if isinstance(prediction, InputError):
                raise prediction
            bands = None if self.predictor.bands == "all" else self.predictor.bands
            shown = as_rgb(self.predictor.model, image, bands)
            result.write(
                shown,
                prediction,
                self.classes,
                probabilities=self.probabilities,
                legend=self.legend,
            )
            if self.polygons is Polygons.geojson:
                polygon_files.write_geojson(result.polygons, prediction.labels, self.classes)
            seconds = (time.perf_counter() - start) / len(batch)
            return Done(
                folders.Outcome.of(
                    file, prediction.labels, self.classes.names, seconds, conversions
                ),
                result_line(file, prediction, self.classes, result, seconds),
                () if told else conversions,
            )

        return [
            each if isinstance(each, InputError) else _attempt(write, picture, *each)
            for picture, each in zip(batch, inputs, strict=True)
        ]

    def _predictions(
        self, files: Sequence[Path], inputs: Sequence[Read | InputError]
    ) -> list[Prediction | InputError]:
        """The prediction for each picture that could be read.

        What goes wrong with several together is tried with each alone, whose error has its name.
        """
        read = zip(files, inputs, strict=True)
        pictures = [(file, each[0]) for file, each in read if not isinstance(each, InputError)]
        self._tell_of_tiles(files[0], [image for _, image in pictures])

        def alone(file: Path, image: np.ndarray) -> Prediction:
            with named_errors(file):
                return self.predictor(image, probabilities=self.probabilities)

        if len(pictures) > 1:
            with suppress(InputError, ValueError):
                images = [image for _, image in pictures]
                return [*self.predictor(images, probabilities=self.probabilities)]
        return [_attempt(alone, *picture) for picture in pictures]

    def _tell_of_tiles(self, first: Path, pictures: Sequence[np.ndarray]) -> None:
        from deeplab.predict import TILE

        tiles = self.predictor.tile == "auto" and any(
            self.predictor.in_tiles(image.shape) for image in pictures
        )
        if tiles:
            print_notes([f"{first}: in tiles of {TILE} pixels, for want of memory (--tile)"])


def _attempt(work: Callable[..., T], *given: Any) -> T | InputError:
    """What `work` makes of something, or the InputError that it raises."""
    try:
        return work(*given)
    except InputError as error:
        return error


def _check(pictures: Sequence[Picture], work: _Work, at_once: int) -> list[Conversion]:
    """What reading converts in the pictures; InputError for one that cannot be read."""

    def conversions(picture: Picture) -> list[Conversion]:
        return work.check(picture[0])

    found: list[Conversion] = []
    checked = folders.work_through(pictures, conversions, at_once, lambda: False)
    for _, answer in _progress(checked, len(pictures), "checking"):
        if isinstance(answer, InputError):
            raise answer
        found += answer
    return found


def _write_coco(path: Path, pictures: Sequence[Picture], work: _Work) -> None:
    """All label maps as one file; pictures are named below the folder that they share."""
    labelled = [each for each in pictures if work.files_of(each).labels.exists()]  # not broken
    shared = os.path.commonpath([file.absolute().parent for file, _ in labelled])
    maps = (
        (
            each[0].absolute().relative_to(shared).as_posix(),
            work.files_of(each).read_labels(math.inf),
        )
        for each in _progress(labelled, len(labelled), "polygons")
    )
    polygon_files.write_coco(path, maps, work.classes, work.predictor.model.num_classes)
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


def _progress(items: Iterable[T], count: int, what: str) -> Iterator[T]:
    """The items, under a progress bar on standard error when there are several and it is seen."""
    console = Console(stderr=True)
    if count < 2 or not console.is_terminal:
        yield from items
        return
    # Lines that are printed meanwhile go above the bar, but stay on standard output if it is piped.
    with Progress(console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
        yield from progress.track(items, total=count, description=what)
