"""Weights and data sets that are joined mean the same by class i, in every command."""

import json
import re
from dataclasses import replace

import pytest
import torch
from commands import assert_refused, done
from commands import picture as photograph
from dataset_files import own_data
from safetensors.torch import save_file
from tiny_training import SHORT, Signalling, run, tiny_pictures

from deeplab.data.agreement import Classes, compare_classes
from deeplab.data.datasets.classes import CAMVID
from deeplab.data.scenes import CLASSES
from deeplab.errors import InputError
from deeplab.export import export
from deeplab.model import deeplab_v2_small
from deeplab.training import DataConfig, train
from deeplab.weights import load_model, load_weights, read_metadata, save_weights

ONE_STEP = replace(SHORT, steps=1, lr=1e-30)


def agree(theirs, ours) -> str:
    return compare_classes(Classes.of("w", theirs), Classes.of("set", ours), "mend it")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["sky", "road"], ["sky", "road"]),
        (["traffic light", "Sky"], ["Traffic_Light", "sky "]),
        (["traffic-light", "stra\N{LATIN SMALL LETTER SHARP S}e"], ["trafficlight", "STRASSE"]),
        (["caf\N{LATIN SMALL LETTER E WITH ACUTE}"], ["cafe\N{COMBINING ACUTE ACCENT}"]),
        ([], ["sky", "road"]),
    ],
)
def test_the_same_names_agree_however_they_are_written(theirs, ours):
    known = Classes("w", len(ours), tuple(theirs))
    assert compare_classes(known, Classes.of("set", ours), "mend it") == ""


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (["a", "b"], ["b", "a"], "a is class 0 there and class 1 here, b is class 1 there and"),
        (["a", "b", "c"], ["c", "x", "y"], "c is class 2 there and class 0 here; mend it"),
        (["x", "a", "b"], ["a", "c", "d"], "a is class 1 there and class 0 here; mend it"),
        (["void", "A b", "c"], ["a_b", "c", "d"], "A b is class 1 there and class 0 here, c is"),
        (list("abcdef"), list("bcdefa"), "c is class 2 there and class 1 here and 3 more; mend"),
    ],
)
def test_a_name_at_two_places_is_refused_and_named(theirs, ours, said):
    with pytest.raises(InputError, match=f"w: has classes of set in another order: .*{said}"):
        agree(theirs, ours)


def test_other_names_are_taken_for_the_same_and_told():
    assert agree(["Himmel", "road"], ["sky", "road"]) == (
        "w and set name 1 of 2 classes differently (Himmel and sky); they are taken for the same"
    )
    said = "4 of 4 classes differently (a and w, b and x, c and y and 1 more)"
    assert said in agree("abcd", "wxyz")


def test_names_that_only_their_writing_tells_apart_are_compared_as_they_are():
    assert agree(["a-b", "ab"], ["a-b", "ab"]) == ""
    with pytest.raises(InputError, match="ab is class 1 there and class 0 here"):
        agree(["a-b", "ab"], ["ab", "x"])


def test_another_count_names_what_only_one_side_has():
    """As where one side ignores what is a class of the other."""
    with pytest.raises(InputError) as error:
        agree(["void", "sky", "road"], ["sky", "road"])
    counts = "w: has 3 classes (void, sky, road), set has 2 classes (sky, road)"
    assert str(error.value) == f"{counts}; only w has void; mend it"
    with pytest.raises(InputError, match=r"w: has 1 class, set has 2 classes \(a, b\); mend it"):
        compare_classes(Classes("w", 1), Classes.of("set", ["a", "b"]), "mend it")


@pytest.fixture(scope="module")
def swapped(tmp_path_factory):
    """Weights that name the classes of the scenes, two of them in each other's place."""
    torch.manual_seed(SHORT.seed + 1)
    names = [CLASSES[1], CLASSES[0], *CLASSES[2:]]
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(deeplab_v2_small(len(CLASSES)), path, {"class_names": names})
    return path


ORDER = (
    r"w\.safetensors: has classes of .* in another order: grass is class 0 there and class 1 here, "
    "sky is class 1 there and class 0 here; "
)


def test_training_refuses_weights_with_the_classes_in_another_order(swapped):
    data = Signalling(tiny_pictures(), -1, 0)
    config = replace(ONE_STEP, weights=str(swapped))
    mend = r"bring the data set's classes .* --set new_classifier=true"
    with pytest.raises(InputError, match=ORDER + mend):
        run(config, data)
    assert data.calls == 0


def test_a_new_classifier_takes_the_place_of_one_for_other_classes(swapped, tmp_path):
    config = replace(ONE_STEP, weights=str(swapped), new_classifier=True)
    model = run(config, tiny_pictures(), tmp_path / "w.safetensors").model
    theirs, drawn = load_model(swapped), run(ONE_STEP, tiny_pictures()).model
    assert torch.equal(model.backbone.conv1.weight, theirs.backbone.conv1.weight)
    assert torch.equal(model.head.classifier.weight, drawn.head.classifier.weight)
    assert not torch.equal(model.head.classifier.weight, theirs.head.classifier.weight)
    assert read_metadata(tmp_path / "w.safetensors")["recipe"]["new_classifier"] is True


def test_training_tells_other_names_and_takes_the_same_ones_however_written(tmp_path, capfd):
    path = tmp_path / "w.safetensors"
    config = replace(ONE_STEP, weights=str(path))
    for first, said in (("Himmel", "(Himmel and sky); they are taken for the same\n"), ("SKY", "")):
        names = [first, *CLASSES[1:]]
        save_weights(deeplab_v2_small(len(CLASSES)), path, {"class_names": names})
        run(config, tiny_pictures())
        assert capfd.readouterr().err.endswith(said)


def named(names, label: str):
    pictures = tiny_pictures()
    return type(label, (list,), {"classes": tuple(names), "name": label})(pictures)


def test_the_pictures_to_validate_on_have_the_classes_that_are_trained():
    ours = named(CLASSES, "ours")
    turned = named([*CLASSES[1:], CLASSES[0]], "turned")
    with pytest.raises(InputError, match=r"the validation set: has classes of ours in another"):
        run(SHORT, ours, validation=turned)
    with pytest.raises(InputError, match=r"the validation set: has 3 classes .*ours has 11"):
        run(SHORT, ours, validation=named("abc", "short"))
    with pytest.raises(InputError, match=r"the training set: has classes of class_names in anoth"):
        run(SHORT, ours, validation=ours, class_names=turned.classes)


def test_a_folder_of_ones_own_is_held_against_the_weights(tmp_path):
    """One list of classes with the first two swapped: what a user changes in classes.txt."""
    data = own_data(tmp_path)
    config = replace(ONE_STEP, data=DataConfig("folder", str(data), "train", "val"))
    train(config, tmp_path / "first.safetensors", progress=False)
    (data / "classes.txt").write_text("OLD_TREE\nground\nwater\n")
    weights = str(tmp_path / "first.safetensors")
    again = replace(config, weights=weights)
    with pytest.raises(InputError, match="ground is class 0 there and class 1 here, old tree is"):
        train(again, progress=False)
    given = ["--weights", weights, "--data", "folder", "--root", data]
    message = r"first\.safetensors: has classes of .* in another order: ground is class 0 there"
    assert_refused(tmp_path, message, "evaluate", *given, "--split", "val")
    tuning = ["--split", "all", "--folds", 2, "--out", tmp_path / "crf"]
    assert_refused(tmp_path, message, "tune-crf", *given, *tuning)
    (data / "classes.txt").write_text("ground\nwater\n")
    message = r"has 3 classes .* has 2 classes \(ground, water\); only \S+ has old tree; give weig"
    assert_refused(tmp_path, message, "evaluate", *given, "--split", "val")


@pytest.mark.parametrize("command", ["evaluate", "tune-crf"])
def test_commands_that_score_refuse_another_order(swapped, tmp_path, command):
    out = ["--out", tmp_path / "crf"] if command == "tune-crf" else []
    assert_refused(tmp_path, ORDER + "give weights", command, "--weights", swapped, *out)


def test_commands_that_score_tell_other_names(tmp_path):
    path = tmp_path / "w.safetensors"
    given = ["evaluate", "--weights", path, "--scenes", 1, "--data-option", "size=33", "--no-crf"]
    for first, said in (("Himmel", "(Himmel and sky); they are taken for the same\n"), ("sky", "")):
        names = [first, *CLASSES[1:]]
        save_weights(deeplab_v2_small(len(CLASSES)), path, {"class_names": names})
        told = done(*given).stderr.splitlines(keepends=True)
        assert "no pixel of" in told.pop()  # the scene has not every class
        assert "".join(told).endswith(said)
        assert (said == "") == (told == [])


def test_convert_tells_which_classes_a_set_of_another_count_has(tmp_path):
    source = tmp_path / "w.safetensors"
    save_weights(deeplab_v2_small(3), source)
    message = r"w.safetensors: has 3 classes, --data camvid has 11 classes .*; leave out --data"
    given = ["convert", source, tmp_path / "o.safetensors", "--data", "camvid"]
    assert_refused(tmp_path, message, *given)


def test_convert_gives_no_class_the_name_of_another(tmp_path):
    source, out = tmp_path / "w.safetensors", tmp_path / "out.safetensors"
    given = ["convert", source, out, "--model", "deeplab_v2_small", "--data", "camvid"]
    names = list(CAMVID)
    save_weights(deeplab_v2_small(len(names)), source, {"class_names": names[::-1]})
    message = "has classes of --data camvid in another order: bicyclist is class 0 .*; leave"
    assert_refused(tmp_path, message, *given)
    save_weights(deeplab_v2_small(len(names)), source, {"class_names": ["Himmel", *names[1:]]})
    assert "(Himmel and sky); they are taken for the same" in done(*given).stderr
    assert read_metadata(out)["class_names"] == names


def renamed(path, names) -> None:
    """A file without the model's name and with these names for 3 classes."""
    tensors = deeplab_v2_small(3).state_dict()
    save_file(tensors, path, {"class_names": json.dumps(names)})


def test_names_that_are_not_one_for_each_class_are_refused_before_anything_is_written(tmp_path):
    weights, photo = tmp_path / "w.safetensors", photograph(tmp_path / "photo.png")
    renamed(weights, ["a", "b"])
    given = ["--weights", weights, "--model", "deeplab_v2_small", "--classes", 3]
    message = r"w\.safetensors: class_names must be 3 names, one for each class, not 2"
    assert_refused(tmp_path, message, "segment", photo, *given, "--out", tmp_path / "out")
    assert_refused(tmp_path, message, "export", tmp_path / "m.pt2", *given)
    with pytest.raises(InputError, match="metadata: class_names must be 3 names, one for each"):
        export(load_named(weights), tmp_path / "m.pt2", metadata={"class_names": ["a", "b"]})
    renamed(weights, ["a", "b", "c"])
    said = done("segment", photo, *given, "--out", tmp_path / "out", "--no-crf").stdout
    assert re.search(r"[abc] [\d.]+%", said)


def load_named(weights):
    model = deeplab_v2_small(3)
    load_weights(model, weights)
    return model
