"""What each format says, and how its own files go wrong: COCO, LabelMe, YOLO, CVAT."""

import base64
import io
import json

import numpy as np
import pytest
from annotated import photo, stored
from PIL import Image

from deeplab.data.datasets import IGNORE
from deeplab.data.datasets.folder import read_class_file
from deeplab.data.imports import Settings, import_annotations
from deeplab.data.imports.shapes import BOXES, LINES
from deeplab.errors import InputError


def imported(kind, source, tmp_path, **settings):
    """The report, and the label maps by name."""
    out = tmp_path / "out"
    report = import_annotations(kind, source, out, Settings(**settings))
    maps = sorted((out / "labels").rglob("*.png"))
    return report, {
        path.relative_to(out / "labels").with_suffix("").as_posix(): stored(path) for path in maps
    }


def refused(kind, source, tmp_path, message, **settings):
    with pytest.raises(InputError, match=message):
        imported(kind, source, tmp_path, **settings)
    assert not list(tmp_path.glob("*out*")), "something is left"


def png(mask):
    file = io.BytesIO()
    Image.fromarray(np.asarray(mask, bool)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


SQUARE = [2, 3, 6, 3, 6, 8, 2, 8]


@pytest.fixture
def coco(tmp_path):
    """Two pictures, of a cat and of a crowd; a function that writes the file anew."""
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / "images" / name)
    content = {
        "images": [
            {"id": i, "file_name": f"{name}.jpg", "height": 20, "width": 24}
            for i, name in ((7, "a"), (3, "b"))
        ],
        "categories": [{"id": 5, "name": "cat", "color": [9, 8, 7]}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 5, "segmentation": [SQUARE]}],
    }

    def write(**changes):
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content | changes))
        return path

    write.entry = content["annotations"][0]
    return write


def test_coco_polygons_run_lengths_and_crowds(coco, tmp_path):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    runs = {"size": [20, 24], "counts": [0, 20 * 4, 20 * 20]}  # the first four columns
    crowd = {"id": 2, "image_id": 3, "category_id": 2, "segmentation": runs, "iscrowd": 1}
    alone = crowd | {"id": 4, "iscrowd": 0, "image_id": 7}
    report, maps = imported("coco", coco(annotations=[coco.entry, crowd, alone]), tmp_path)
    assert report.classes == ("cat", "dog")
    assert report.shapes == {"cat": 1, "dog": 2}
    assert (maps["b"][:, :4] == IGNORE).all()
    assert (maps["a"][3:8, 2:6] == 0).all()
    assert (maps["a"] == 1).sum() == 80 - 10
    colours = read_class_file(tmp_path / "out" / "classes.toml").palette.tolist()
    assert colours[0] == [9, 8, 7]


def test_coco_boxes_are_left_out_and_pictures_without_labels_named(coco, tmp_path):
    boxes = [coco.entry | {"segmentation": [], "bbox": [1, 1, 4, 4]}]
    report, maps = imported("coco", coco(annotations=boxes), tmp_path, unlabelled="nothing")
    assert report.classes == ("nothing", "cat", "dog")
    assert (report.dropped, report.without) == ({BOXES: 1}, ["a.jpg", "b.jpg"])
    assert (maps["a"] == 0).all()


def test_coco_files_of_several_splits_are_told_by_their_names(coco, tmp_path):
    content = json.loads(coco().read_text())
    (tmp_path / "set" / "annotations").mkdir(parents=True)
    (tmp_path / "set" / "annotations" / "captions_train2017.json").write_text("{}")
    for number, name in enumerate(("train2017", "val2017")):
        one = content | {"images": content["images"][number : number + 1]}
        one["annotations"] = content["annotations"] if not number else []
        path = tmp_path / "set" / "annotations" / f"instances_{name}.json"
        path.write_text(json.dumps(one))
        photo(tmp_path / "set" / name / content["images"][number]["file_name"])
    report, maps = imported("coco", tmp_path / "set", tmp_path)
    assert report.pictures == {"train": 1, "val": 1}
    assert sorted(maps) == ["train/a", "val/b"]


def test_coco_as_roboflow_writes_it_has_a_file_in_each_split(coco, tmp_path):
    content = coco().read_text()
    for split in ("train", "valid"):
        for name in ("a.jpg", "b.jpg"):
            photo(tmp_path / "set" / split / name)
        (tmp_path / "set" / split / "_annotations.coco.json").write_text(content)
    report, _ = imported("coco", tmp_path / "set", tmp_path)
    assert report.pictures == {"train": 2, "val": 2}


def test_coco_files_that_make_no_sense_are_refused(coco, tmp_path):
    def entry(**changes):
        return {"annotations": [coco.entry | changes]}

    wrong = {"size": [20, 24], "counts": [1, 2]}
    for changes, message in (
        (entry(image_id=1), "annotation 1: no picture has the id 1"),
        (entry(category_id=1), "annotation 1: no category has the id 1"),
        (entry(segmentation=[[1, 2, 3]]), "not COCO's file of instances, or damaged.*ValueError"),
        (entry(segmentation=[["x"] * 6]), "not COCO's file of instances"),
        (entry(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "no finite number"),
        (entry(segmentation=wrong), "annotation 1 of a.jpg: a run-length code that makes no sense"),
        (entry(segmentation=[[30, 30, 40, 30, 40, 40]]), "annotation 1 of a.jpg: lies outside"),
        ({"categories": 3}, "not COCO's file of instances"),
        ({"categories": [{"id": 5, "name": "cat", "color": [1, 2]}]}, "not COCO's file"),
        ({"categories": [{"id": 5, "name": "cat", "color": [1, 2, 256]}]}, "a colour"),
        ({"images": []}, "no picture has the id 7"),
        ({"images": [], "annotations": []}, "names no picture"),
    ):
        if "run-length" in message:
            pytest.importorskip("pycocotools", reason="pycocotools is not installed")
        refused("coco", coco(**changes), tmp_path, f"^{tmp_path / 'instances.json'}: .*{message}")
    (tmp_path / "instances.json").write_text('{"images": [')
    refused("coco", tmp_path / "instances.json", tmp_path, "not valid JSON")
    (tmp_path / "instances.json").write_text("[" * 100_000)
    refused("coco", tmp_path / "instances.json", tmp_path, "not valid JSON")
    (tmp_path / "empty").mkdir()
    refused("coco", tmp_path / "empty", tmp_path, "empty: no JSON file there")


def labelme(folder, name="a", image="a.jpg", **shapes):
    """One file of LabelMe; a shape's name is its label, its value (type, points, more)."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        {"label": label, "shape_type": kind, "points": points, "group_id": None, **dict(more)}
        for label, (kind, points, *more) in shapes.items()
    ]
    content = {"shapes": entries, "imagePath": image, "imageHeight": 20, "imageWidth": 24}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_labelme_knows_polygons_rectangles_circles_and_masks(tmp_path):
    photo(tmp_path / "in" / "a.jpg")
    shapes = {
        "box": ("rectangle", [[6, 8], [2, 3]]),
        "disc": ("circle", [[14, 10], [14, 14]]),
        "patch": ("mask", [[20, 0], [22, 2]], ("mask", png([[1, 0, 1], [0, 1, 0], [1, 0, 1]]))),
        "thing": ("line", [[0, 0], [5, 5]]),
        "_background_": ("polygon", [[0, 15], [24, 15], [24, 20], [0, 20]]),
        "__ignore__": (None, [[0, 0], [2, 0], [2, 2], [0, 2]]),
    }
    report, maps = imported("labelme", labelme(tmp_path / "in", **shapes), tmp_path)
    assert report.classes == ("background", "box", "disc", "patch")
    assert report.dropped == {LINES: 1}
    assert (maps["a"][3:8, 2:6] == 1).all()
    assert abs((maps["a"] == 2).sum() - np.pi * 16) < 6
    assert np.array_equal(maps["a"][:3, 20:23] == 3, [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert (maps["a"][15:] == 0).all()
    assert (maps["a"][:2, :2] == IGNORE).all()


def test_labelme_splits_are_the_folders(tmp_path):
    for split, name in (("train", "a"), ("validation", "b")):
        photo(tmp_path / "in" / split / f"{name}.jpg")
        labelme(tmp_path / "in" / split, name, f"{name}.jpg", cat=("rectangle", [[2, 3], [6, 8]]))
    report, maps = imported("labelme", tmp_path / "in", tmp_path)
    assert report.pictures == {"train": 1, "val": 1}
    assert sorted(maps) == ["train/a", "val/b"]


def test_labelme_files_that_make_no_sense_are_refused(tmp_path):
    folder = tmp_path / "in"
    photo(folder / "a.jpg")
    for shape, message in (
        (("star", [[1, 2]]), "a.json: not LabelMe's JSON.*type 'star'"),
        (("rectangle", [[1, 2]]), "a.json: not LabelMe's JSON"),
        (("polygon", "abc"), "a.json: not LabelMe's JSON"),
        (("mask", [[0, 0], [3, 3]], ("mask", "AAAA")), "shape 1 of a.jpg: a mask that cannot be"),
        (("mask", [[0, 0], [3, 3]], ("mask", "?")), "not LabelMe's JSON"),
        (("mask", [[0, 0], [99, 99]], ("mask", png(np.ones((99, 99))))), "mask of 99 x 99 pixels"),
        (("circle", [[5, 5], [9e9, 5]]), "a.json: not LabelMe's JSON.*radius"),
    ):
        refused("labelme", labelme(folder, cat=shape), tmp_path, message)
    for text in ("[]", "{}", '{"shapes": 3}', "\xff", ""):
        (folder / "a.json").write_text(text, encoding="latin-1")
        refused("labelme", folder, tmp_path, r"a\.json: ")
    (folder / "a.json").unlink()
    refused("labelme", folder, tmp_path, "no JSON file there")


@pytest.fixture
def yolo(tmp_path):
    """Pictures a and b; one square in a. A function that writes its labels."""
    for name in ("a", "b"):
        photo(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "labels").mkdir()

    def write(text):
        (tmp_path / "labels" / "a.txt").write_text(text)
        return tmp_path

    return write


def test_yolo_outlines_are_shares_and_boxes_are_left_out(yolo, tmp_path):
    root = yolo("1 0.25 0.5 0.5 0.5 0.5 1 0.25 1\n\n0 0.5 0.5 0.1 0.1\n")
    report, maps = imported("yolo", root, tmp_path, unlabelled="background")
    assert report.classes == ("background", "cat", "dog")
    assert (report.dropped, report.without) == ({BOXES: 1}, ["b.jpg"])
    assert (maps["a"][10:, 6:12] == 2).all()
    assert (maps["a"] == 2).sum() == 60
    assert (maps["b"] == 0).all()


@pytest.mark.parametrize(
    "text",
    [
        "train: images/train\nval: images/val\nnames: [cat, dog]\nnc: 2\n",
        "path: .\ntrain: [images/train]\nval: images/val\nnames: {0: cat, 1: dog}\n",
        "train: ../images/train\nval: ../images/val\nnames:\n- cat\n- 'dog'\n",
        "path: /not/here\ntrain: train.txt\nval: images/val\nnames:\n  1: dog\n  0: cat\n",
    ],
)
def test_yolo_reads_the_forms_of_data_yaml(text, tmp_path):
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    root = tmp_path / "set"
    for name in ("train/a", "val/b"):
        photo(root / "images" / f"{name}.jpg")
        (root / "labels" / name).parent.mkdir(parents=True)
        (root / "labels" / f"{name}.txt").write_text("1 0 0 1 0 1 1 0 1\n")
    (root / "train.txt").write_text("./images/train/a.jpg\n")
    (root / "data.yaml").write_text(text)
    report, maps = imported("yolo", root, tmp_path)
    assert report.classes == ("cat", "dog")
    assert sorted(maps) == ["train/a", "val/b"]
    assert all((labels == 1).all() for labels in maps.values())


@pytest.mark.usefixtures("yolo")
def test_yolo_splits_without_a_yaml_are_folders(tmp_path):
    for split in ("train", "val"):
        photo(tmp_path / "images" / split / "c.jpg")
    (tmp_path / "images" / "a.jpg").unlink()
    (tmp_path / "images" / "b.jpg").unlink()
    assert imported("yolo", tmp_path, tmp_path)[0].pictures == {"train": 1, "val": 1}


def test_yolo_files_that_make_no_sense_are_refused(yolo, tmp_path):
    for text, message in (
        ("2 0 0 1 0 1 1\n", r"a.txt: line 1: class 2 must be 0 to 1"),
        ("0 0 0 1 0 1 1\ncat 0 0 1 0 1 1\n", r"a.txt: line 2: class cat must be 0 to 1"),
        ("0 0 0 1 0 1 x\n", r"a.txt: not YOLO's labels \(line 1\)"),
        ("0 0 0 1 0 1 1 0\n", r"a.txt: not YOLO's labels \(line 1\)"),
        ("0 3 3 4 3 4 4\n", "line 1 of a.jpg: lies outside"),
    ):
        refused("yolo", yolo(text), tmp_path, message)
    refused("yolo", yolo(""), tmp_path, "--images: YOLO's pictures lie", images=tmp_path)
    (tmp_path / "labels" / "classes.txt").write_text("cat\n")  # of labelImg, no labels
    (tmp_path / "labels" / "c.txt").write_text("")
    refused(
        "yolo", yolo(""), tmp_path, r"labels/c.txt: no picture in .*images has this name \(1 of"
    )
    (tmp_path / "labels" / "c.txt").unlink()
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    for text, message in (
        ("names: [", "data.yaml: not valid YAML"),
        ("names: [a]\n", "data.yaml: names no pictures"),
        ("names: {1: a}\ntrain: images\n", "data.yaml: not YOLO's data.yaml.*names"),
        ("train: images\n", "data.yaml: not YOLO's data.yaml.*KeyError"),
        ("names: [a]\ntrain: nowhere\n", "data.yaml: train: nowhere: no such folder"),
        ("names: !!python/object/apply:os.getcwd []\n", "data.yaml: not valid YAML"),
    ):
        (tmp_path / "data.yaml").write_text(text)
        refused("yolo", tmp_path, tmp_path, message)
    (tmp_path / "other.yaml").write_text("")
    refused("yolo", tmp_path, tmp_path, "2 YAML files; .*name the right one as SRC")


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><project><labels>
<label><name>cat</name><color>#0a0b0c</color><type>any</type></label>
<label><name>dog</name><color>#fa3253</color></label>
</labels></project></meta>
<image id="0" name="a.jpg" width="24" height="20"{subset}>{shapes}</image>
</annotations>"""


def cvat(tmp_path, shapes, subset=""):
    photo(tmp_path / "images" / subset / "a.jpg")
    path = tmp_path / "annotations.xml"
    path.write_text(CVAT.format(shapes=shapes, subset=f' subset="{subset}"' if subset else ""))
    return tmp_path


def test_cvat_shapes_layers_colours_and_subsets(tmp_path):
    shapes = """
<polygon label="cat" source="manual" occluded="0" points="2,3;6,3;6,8;2,8" z_order="1"/>
<box label="dog" xtl="0" ytl="0" xbr="6" ybr="8" z_order="0"/>
<mask label="dog" rle="1, 1, 1, 2, 1, 2, 1" left="10" top="4" width="3" height="3" z_order="0"/>
<ellipse label="cat" cx="17" cy="14" rx="3" ry="3" z_order="0"/>
<polyline label="cat" points="1,1;2,2"/><tag label="dog"/><points label="cat" points="1,1"/>
"""
    report, maps = imported("cvat", cvat(tmp_path, shapes, "Validation"), tmp_path)
    labels = maps["val/a"]
    assert report.classes == ("cat", "dog")
    assert (report.shapes, report.dropped) == ({"cat": 2, "dog": 2}, {LINES: 2})
    assert (labels[3:8, 2:6] == 0).all()
    assert (labels[:3, :6] == 1).all()
    assert np.array_equal(labels[4:7, 10:13] == 1, [[0, 1, 0], [1, 1, 0], [1, 1, 0]])
    assert abs((labels[10:18, 12:22] == 0).sum() - np.pi * 9) < 4
    colours = read_class_file(tmp_path / "out" / "classes.toml").palette.tolist()
    assert colours == [[10, 11, 12], [250, 50, 83]]


def test_cvat_boxes_turn_clockwise_about_their_middle(tmp_path):
    box = '<box label="dog" xtl="8" ytl="8" xbr="16" ybr="10" rotation="{}"/>'
    _, maps = imported("cvat", cvat(tmp_path, box.format("90")), tmp_path)
    assert (maps["a"][5:13, 11:13] == 1).all()
    assert (maps["a"] == 1).sum() == 16
    (tmp_path / "second").mkdir()
    _, maps = imported("cvat", cvat(tmp_path, box.format("30")), tmp_path / "second")
    assert maps["a"][10, 14] == 1  # the right end is below the middle, as y points down
    assert maps["a"][7, 14] == IGNORE


def test_cvat_files_that_make_no_sense_are_refused(tmp_path):
    mask = '<mask label="dog" rle="{}" left="1" top="1" width="3" height="3"/>'
    for shapes, message in (
        ('<polygon label="cow" points="2,3;6,3;6,8"/>', "no class is called 'cow'; there are cat"),
        ('<polygon label="cat" points="2,3;6;6,8"/>', "not CVAT's XML for images"),
        ('<polygon points="2,3;6,3;6,8"/>', "not CVAT's XML for images.*label"),
        ('<blob label="cat"/>', "a shape <blob>"),
        (mask.format("1,2"), "shape 1 of a.jpg: runs that do not fill a mask of 3 x 3"),
        (mask.format("-1,10"), "runs that do not fill"),
        (mask.format(f"{2**63 - 1},{2**63 - 1},11"), "runs that do not fill"),
        (mask.format("1,x"), "not CVAT's XML for images"),
        ("<polygon", "not valid XML"),
    ):
        refused("cvat", cvat(tmp_path, shapes), tmp_path, message)
    (tmp_path / "annotations.xml").write_text("<annotations><track/></annotations>")
    refused("cvat", tmp_path, tmp_path, "of a video; export it as")
    (tmp_path / "annotations.xml").write_text("<html/>")
    refused("cvat", tmp_path, tmp_path, "its root is <html>")


def test_xml_with_a_document_type_is_refused_unread(tmp_path):
    entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(12))
    bomb = f'<!DOCTYPE a [<!ENTITY e0 "x">{entities}]><annotations>&e12;</annotations>'
    file = '<!DOCTYPE a SYSTEM "http://nowhere.invalid/a.dtd"><annotations/>'
    for text in (bomb, file, bomb.encode("utf-16")):
        path = tmp_path / "annotations.xml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        refused("cvat", tmp_path, tmp_path, "declares a document type, which is refused")
