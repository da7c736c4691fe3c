"""CRF settings and recipes: TOML files, `--set` and options, right and wrong.

Oracles: settings in a file, by options, and handed to the CRF in memory give the same labels; a
recipe that is taken stands as it was given in the weights that it trains; a value of another type
or out of range is refused with the key that has it.
"""

import dataclasses
import random
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from campaign import damage
from campaign.case import Case, Command, Ended, Wrong, require
from campaign.network import WEIGHTS, check_labels, labels_of, stored_crf, write_weights
from campaign.rasters import png, raster
from campaign.runner import Family
from campaign.toml_texts import ANY_TEXT, VALUES, broken_toml, dumps
from deeplab.crf_settings import CRFSettings
from deeplab.errors import InputError
from deeplab.training import TrainConfig
from deeplab.training.recipe import flat_settings, make_config
from deeplab.weights import read_metadata

IMAGE = raster("few", 20, 26, 3)
PICTURE = {"a.png": png(IMAGE, 2)}
SEGMENT = ["segment", "a.png", "--weights", WEIGHTS, "--out", "out"]
FIELDS = (
    *("iterations", "gaussian_weight", "gaussian_sigma_xy"),
    *("bilateral_weight", "bilateral_sigma_xy", "bilateral_sigma_rgb"),
)
NUMBERS = st.one_of(
    st.floats(0.5, 60).map(lambda x: round(x, 3)), st.integers(1, 50), st.sampled_from((0, 1, 3.0))
)
NONSENSE = st.sampled_from(
    (-1, -0.5, float("nan"), float("inf"), "3", True, [3.0], {"a": 1}, 2**70, -1e300)
)


def sensible(draw: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(FIELDS), unique=True)):
        value = draw(st.integers(0, 6)) if name == "iterations" else draw(NUMBERS)
        chosen[name] = (value or 1) if "sigma" in name else value
    return chosen


def labelled(settings: CRFSettings, folder: Path, _ended: Ended) -> None:
    check_labels(folder / "out" / "a_labels.png", labels_of(IMAGE, settings))


@st.composite
def crf_file(draw: Any) -> Case:
    chosen = sensible(draw)
    way = draw(st.sampled_from(("file", "options", "both")))
    in_file = chosen if way == "file" else {}
    files, args, settings = dict(PICTURE), list(SEGMENT), stored_crf()
    if way != "options":
        files["crf.toml"] = dumps({"crf": in_file})
        args += ["--crf-settings", "crf.toml"]
        settings = CRFSettings()  # the file's, not those that the weights store
    if way != "file":
        args += [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
    check = partial(labelled, settings.changed(chosen))
    return Command(f"settings by {way}: {chosen}", args, files, "result", check=check)


@st.composite
def wrong_crf(draw: Any) -> Case:
    """One value that is none."""
    chosen, name = sensible(draw), draw(st.sampled_from(FIELDS))
    chosen[name] = draw(st.one_of(NONSENSE, VALUES))
    refused = False
    try:
        layer = CRFSettings().changed(chosen).layer(3)
    except (InputError, ValueError, TypeError, OverflowError):
        refused = True
    else:
        if layer.iterations >= 20:  # too many to wait for
            chosen[name], refused = -1, True
    one_type = not isinstance(chosen[name], bool) or refused
    require(one_type, f"{name} = {chosen[name]}: a truth value taken for a number")
    files = PICTURE | {"crf.toml": dumps({"crf": chosen})}
    args = [*SEGMENT, "--crf-settings", "crf.toml"]
    return Command(f"{name} = {chosen[name]!r:.60}", args, files, "refused" if refused else None)


@st.composite
def no_crf_file(draw: Any) -> Case:
    text = broken_toml(random.Random(draw(damage.seeds())))
    if draw(st.booleans()):
        whole = dumps({"crf": {"iterations": 2, "bilateral_weight": 4.0}})
        _, text = damage.harm(draw, whole)
    args = [*SEGMENT, "--crf-settings", "crf.toml"]
    return Command("a damaged crf.toml", args, PICTURE | {"crf.toml": text})


TINY = {
    **{"steps": 1, "batch_size": 1, "crop": 17, "scenes": 1, "validation_scenes": 1},
    **{"workers": 0, "warmup": 0, "precision": "float32"},
}
HARMLESS = {  # what changes a run of one step without making it longer
    "lr": st.floats(1e-4, 0.01),
    "momentum": st.floats(0, 0.99),
    "weight_decay": st.floats(0, 0.1),
    "optimizer": st.sampled_from(("sgd", "adamw")),
    "policy": st.sampled_from(("poly", "step")),
    "power": st.floats(0.1, 2),
    "mirror": st.booleans(),
    "loss_stride": st.sampled_from((1, 8)),
    "scales": st.sampled_from(([0.5, 1.5], [1, 1])),
    "log_every": st.integers(1, 50),
    "seed": st.integers(0, 2**31),
    "channels_last": st.booleans(),
    "in_memory": st.booleans(),
    "skip_broken": st.booleans(),
    "class_weights": st.sampled_from(([], [1.0] * 11, [0, *[2.5] * 10], "balanced")),
    "loss": st.sampled_from(("cross_entropy", "focal", "ohem")),
}


def given(recipe: dict[str, Any], way: str) -> tuple[list[str], dict[str, bytes]]:
    """The recipe as a file, or by --set."""
    args = ["train", "--out", "w.safetensors"]
    if way == "file":
        return [*args, "--config", "my.toml"], {"my.toml": dumps(recipe)}
    texts = (f"{key}={dumps({'x': value}).decode()[4:].strip()}" for key, value in recipe.items())
    return [*args, *(part for text in texts for part in ("--set", text))], {}


@st.composite
def recipe(draw: Any) -> Case:
    """A recipe that trains: what the weights say of it is what was given."""
    chosen = TINY | {
        name: draw(HARMLESS[name])
        for name in draw(st.lists(st.sampled_from(sorted(HARMLESS)), max_size=4, unique=True))
    }
    args, files = given(chosen, draw(st.sampled_from(("file", "--set"))))

    def check(folder: Path, _ended: Ended) -> None:
        stored = read_metadata(folder / "w.safetensors")["recipe"]
        wrong = {key: stored[key] for key, value in chosen.items() if stored[key] != value}
        require(not wrong, f"recipe {wrong}, given {chosen}")

    return Command(f"recipe {chosen}", args, files, "result", check=check)


@st.composite
def wrong_recipe(draw: Any) -> Case:
    """One field of a recipe with any value: refused with the key, unless it is a right one."""
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    odd = st.sampled_from(("data.root", "data.nam", "stepz", "Steps", ""))
    name, value = draw(st.sampled_from(names) | odd), draw(VALUES | NONSENSE)
    table = TINY | {name: value}
    try:
        make_config(flat_settings(dict(table), "x"))
    except InputError:
        pass
    except Exception as error:
        raise Wrong(f"{name} = {value!r}: {error!r}") from error
    else:  # a right one: it may take long, so another key makes the recipe wrong
        table |= {"crop": 18}
    args, files = given(table, draw(st.sampled_from(("file", "--set"))))
    return Command(f"{name} = {value!r:.60}", args, files, "refused")


@st.composite
def no_recipe(draw: Any) -> Case:
    text = broken_toml(random.Random(draw(damage.seeds()))) + b"\ncrop = 18\n"
    args = ["train", "--out", "w.safetensors", "--config", "my.toml"]
    return Command("a recipe that is no TOML", args, {"my.toml": text}, "refused", ["my.toml"])


@st.composite
def set_text(draw: Any) -> Case:
    """--set with any text: KEY=VALUE, or what is none."""
    texts = ["=", "a=", "=3", "crop=18", "crop=17\nsteps=1", "lr=[" + "[" * 3000, "data=1"]
    texts += ["data.options.x=1", "model_options=3"]
    text = draw(ANY_TEXT | st.sampled_from(texts))
    args = ["train", "--out", "w.safetensors", "--set", "crop=18", "--set", text]
    args += ["--set", "batch_size=0"]
    return Command(f"--set {text!a:.60}", args, {}, "refused")


def cases(_shared: Path) -> st.SearchStrategy[Case]:
    many = [crf_file(), wrong_crf(), wrong_recipe(), no_crf_file(), no_recipe(), set_text()]
    return st.one_of(*many, *many, recipe())


def handmade(_shared: Path) -> list[Case]:
    made: list[Case] = []
    args = [*SEGMENT, "--crf-settings", "crf.toml"]
    for what, content in damage.OTHER_FILES.items():
        files = PICTURE | {"crf.toml": content}
        made.append(Command(f"{what} as crf.toml", args, files, "refused", ["crf.toml"]))
        files = {"my.toml": content}
        train = ["train", "--out", "w.safetensors", "--config", "my.toml", "--set", "crop=18"]
        made.append(Command(f"{what} as a recipe", train, files, "refused"))
    for what, matrix, wanted in (
        ("learned penalties", [[0, 1, 2], [1, 0, 3], [2, 3, 0]], "result"),
        ("penalties of two classes", [[0, 1], [1, 0]], "refused"),
        ("ragged penalties", [[0, 1, 2], [1, 0], [2, 3, 0]], "refused"),
        ("penalties that are NaN", [[float("nan")] * 3] * 3, "refused"),
        ("penalties that are a text", "potts", "refused"),
    ):
        files = PICTURE | {"crf.toml": dumps({"crf": {"compatibility": matrix}})}
        made.append(Command(what, args, files, wanted))  # type: ignore[arg-type]
    for name in ("nowhere.toml", ".", "/", "~", "scenes.", "../recipes/scenes", "", "a\nb"):
        train = ["train", "--out", "w.safetensors", f"--config={name}", "--set", "crop=18"]
        made.append(Command(f"--config {name!a}", train, {}, "refused"))
    several = ["train", "--out", "w.safetensors", "--set", "crop=17\nsteps=5"]
    several += ["--set", "workers=-1"]
    made.append(Command("two settings in one --set", several, {}, "refused", ["crop"]))
    return made


FAMILY = Family("settings", "CRF settings and recipes", write_weights, cases, handmade)
