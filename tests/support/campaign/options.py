"""Every option of every command, with right values, wrong ones and any text.

A command line here is a right one of little work, to which one to three options are added. Oracle:
with a value that can be told to be wrong the line must be refused; with right values only it ends
in a result, whose files have to be whole. Options are found by looking at the program, so that a
new one is tried from its first day, with any text.
"""

from pathlib import Path
from typing import Any

import numpy as np
import typer
from hypothesis import strategies as st

from campaign.case import Case, Command, Ended, require
from campaign.damage import OTHER_FILES
from campaign.files import content
from campaign.labels import drawn, one_set, stored
from campaign.network import WEIGHTS, label_map, write_weights
from campaign.rasters import png, raster
from campaign.runner import Family
from campaign.toml_texts import ANY_TEXT
from deeplab import cli
from deeplab.crf_settings import CRFSettings
from deeplab.weights import load_model

IMAGE = png(raster("few", 12, 16, 3), 2)
MARKS = np.zeros((12, 16, 3), np.uint8)
MARKS[2:4, 2:6], MARKS[8:10, 9:14] = (255, 0, 0), (0, 0, 255)
SET = one_set([(IMAGE, *stored(drawn(3, 1), "grey")), (IMAGE, *stored(drawn(3, 2), "grey"))])

# wrong everywhere for numbers of that kind
NO_INTEGERS = ("", "x", "1.5", "nan", "1e3", "--", "½", "9" * 30, "-1")
NO_NUMBERS = ("", "x", "nan", "inf", "-inf", "1e999", "1,5", "-1")
SHORT = ["--steps=1", "--batch-size=2", "--crop=17", "--scenes=1", "--validation-scenes=1"]
SHORT += ["--workers=0", "--warmup=0", "--precision=float32"]
TUNING = ["--images=2", "--rounds=0", "--trials=1", "--iterations=1", "--bilateral-weight=3"]
TUNING += ["--bilateral-sigma-xy=9", "--bilateral-sigma-rgb=5"]
DATA = ["--data=folder", "--root=set", "--split=all"]

LINES = {  # the line that options are added to, and the files it needs
    "segment": (["a.png", f"--weights={WEIGHTS}", "--no-crf"], {"a.png": IMAGE}),
    "refine": (
        ["a.png", "marks.png", "--iterations=1"],
        {"a.png": IMAGE, "marks.png": png(MARKS, 2)},
    ),
    "train": ([*SHORT, "--out=w.safetensors"], {}),
    "evaluate": ([*DATA, f"--weights={WEIGHTS}", "--no-crf"], SET),
    "tune-crf": ([*DATA, f"--weights={WEIGHTS}", "--out=tuned", *TUNING], SET),
    "convert": ([WEIGHTS, "out.safetensors", "--model=deeplab_v2_small", "--classes=3"], {}),
    "data check": (["folder", "set", "--workers=0"], SET),
    "data list": ([], {}),
}
POOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # wrong values, right values
    "--weights": (("nowhere.safetensors", ".", "a.png", ""), (WEIGHTS,)),
    "--model": (("unet", "", "../x"), ("deeplab_v2_small",)),
    "--classes": ((*NO_INTEGERS, "0", "300"), ()),
    "--device": (("cpu ", "gpu", "", "cuda:7", "tpu"), ("cpu", "auto")),
    "--scales": (
        ("", "x", "0", "-1", "nan", "1,,2", "9", "1;2", "0.01"),
        ("1", "0.5,1", "1,1.5", "1,1"),
    ),
    "--flip": ((), ("",)),
    "--crf-settings": (("nowhere.toml", ".", "a.png", ""), ()),
    "--tile": (("", "x", "1.5", "-1", "0", "8"), ("768", "1024")),
    "--overlap": (("", "x", "1.5", "-1", "600"), ("0", "8")),
    "--max-megapixels": (("", "x", "nan", "-1", "0", "0.00001"), ("1", "1e9", "inf")),
    "--probabilities": ((), ("",)),
    "--legend": ((), ("",)),
    "--polygons": (("", "shapes", "Coco"), ()),
    "--iterations": (("", "x", "1.5", "nan", "1e3", "-1"), ("0", "1", "3")),
    "--gaussian-weight": (NO_NUMBERS, ("0", "2.5")),
    "--gaussian-sigma": ((*NO_NUMBERS, "0"), ("3", "0.5")),
    "--gaussian-sigma-xy": ((*NO_NUMBERS, "0"), ("3", "0.5")),
    "--bilateral-weight": (NO_NUMBERS, ("0", "2.5")),
    "--bilateral-sigma-xy": ((*NO_NUMBERS, "0"), ("30",)),
    "--bilateral-sigma-rgb": ((*NO_NUMBERS, "0"), ("5",)),
    "--gt-prob": ((*NO_NUMBERS, "0", "1", "2"), ("0.7", "0.99")),
    "--data": (("voc", "", "Folder", "folder "), ()),
    "--root": (("nowhere", "set/classes.txt", "set/images", ""), ()),
    "--split": (("nothing", "../all", ""), ("all",)),
    "--data-option": (
        ("x", "=", "x=1", "labels=nowhere", "ignore=999", "classes=no"),
        ("ignore=9",),
    ),
    "--scenes": (("0", "x", "-3", "99999999999"), ()),
    "--absent": (("", "none", "Skip"), ("skip", "zero")),
    "--trimap-around": (("", "edge"), ("void", "boundary")),
    "--trimap": ((".",), ("curve.csv", "curve", "set")),
    "--out": ((), ()),
    "--save-confusion": ((".", "set", "set/classes.txt/x.csv"), ("c.csv", "new/c.csv")),
    "--submission": ((), ()),
    "--report": ((".", "set", "set/images/new", "set/classes.txt"), ("report", "new/report")),
    "--report-pictures": ((*NO_INTEGERS, "201"), ("0", "1")),
    "--source": (("", "caffe", "Auto"), ("auto", "safetensors")),
    "--json": ((".", "set"), ("found.json", "new/found.json")),
    "--workers": (("x", "-1", "1.5", ""), ("0",)),
    "--images": (("1", "0", "-1", "x"), ("2", "9")),
    "--search": (("", "random", "Grid"), ("grid",)),
    "--rounds": (("-1", "x"), ("0", "1")),
    "--trials": (("0", "-1", "x"), ("1",)),
    "--folds": (("1", "0", "9", "x"), ("2",)),
    "--seed": (("-1", "x", "1.5"), ("0", "7")),
    "--steps": ((*NO_INTEGERS, "0"), ("1", "2")),
    "--batch-size": ((*NO_INTEGERS, "0"), ("1", "2")),
    "--accumulate": ((*NO_INTEGERS, "0", "3"), ("1", "2")),
    "--lr": ((*NO_NUMBERS, "0", "1e300"), ("0.01",)),
    "--warmup": (NO_INTEGERS, ("0", "3")),
    "--weight-decay": (NO_NUMBERS, ("0", "0.1")),
    "--crop": ((*NO_INTEGERS, "0", "16", "18", "1"), ("17", "33")),
    "--loss-stride": ((*NO_INTEGERS, "2", "0", "4"), ("1", "8")),
    "--validation-scenes": ((*NO_INTEGERS, "0", "99999999"), ("1", "2")),
    "--validate-every": ((*NO_INTEGERS, "0"), ("1", "100")),
    "--precision": (("", "float64", "bf16", "Float32"), ("float32", "bfloat16")),
    "--config": (("nowhere", "", ".", "a\nb"), ("scenes", "scenes_quick")),
    "--set": (("crop", "lr=0", "=", "stepz=3", "lr='3'", "data.name=voc2012x"), ("mirror=false",)),
    "--resume": ((), ()),
    "--overwrite": ((), ("",)),
    "--tensorboard": ((), ("",)),
    "--pictures": (NO_INTEGERS, ("0", "1")),
    "--patience": (NO_INTEGERS, ("0", "1")),
}
PER_COMMAND = {  # where a name means something else, or a value is right or wrong here only
    ("refine", "--classes"): (("3", "x", "-1"), ()),
    ("convert", "--classes"): ((*NO_INTEGERS, "0", "4", "257"), ("3",)),
    ("convert", "--data"): (("voc", "", "coco", "folder"), ()),
    ("convert", "--model"): (("unet", "", "deeplab_v2_vgg16"), ("deeplab_v2_small",)),
    ("train", "--model"): (("unet", ""), ("deeplab_v2_small",)),
    ("train", "--split"): (("nothing", "all", ""), ()),  # of generated scenes, which have none
    ("train", "--validation-split"): (("nothing", "all", ""), ()),
    ("train", "--data-option"): (("x", "=", "x=1", "labels=nowhere", "ignore=9"), ()),
    ("train", "--seed"): (("-1", "x", "1.5"), ("0", "7")),
    ("train", "--scenes"): ((*NO_INTEGERS, "0", "99999999"), ("1", "2")),
    ("train", "--weights"): (("nowhere.pth", ".", ""), ()),
    ("train", "--crf"): ((), ()),
    ("train", "--resume"): (("",), ()),
    ("train", "--workers"): (("-1", "x", "1.5"), ("0",)),
    ("tune-crf", "--bilateral-weight"): (
        ("", "x", "3:0:6", "6:1:3", "1:1", "nan", "-1", "1:1e-9:2"),
        ("3", "0,3", "3:1:4"),
    ),
    ("tune-crf", "--bilateral-sigma-xy"): (
        ("", "x", "0", "9:0:10", "inf", "1:2:3:4"),
        ("9", "9,12"),
    ),
    ("tune-crf", "--bilateral-sigma-rgb"): (("", "x", "0", "nan"), ("5", "5:1:6")),
    ("tune-crf", "--cache"): (("set/classes.txt",), ("logits", "new/logits")),
    ("evaluate", "--trimap-widths"): ((), ()),
}


def options_of(command: str) -> list[str]:
    """The long names of a command's options, as the program has them now."""
    found: Any = typer.main.get_command(cli.app)
    for part in command.split():
        found = found.commands[part]
    names = {name for option in found.params for name in option.opts if name.startswith("--")}
    return sorted(names - {"--help"})


def pool(command: str, option: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    return PER_COMMAND.get((command, option)) or POOLS.get(option)


@st.composite
def drawn_line(draw: Any) -> Case:
    command = draw(st.sampled_from(sorted(LINES)))
    base, files = LINES[command]
    options = st.sampled_from(options_of(command) or ["--help"])
    chosen = draw(st.lists(options, min_size=1, max_size=3, unique=True))
    added, wrong, known = [], False, True
    for option in chosen:
        values = pool(command, option)
        if values is None:  # a new option, or one whose value nobody can judge here
            text = draw(ANY_TEXT)
            added += [option] if draw(st.booleans()) else [f"{option}={text}"]
            known = False
            continue
        bad, good = values
        if not (bad or good):
            continue
        is_bad = bool(bad) and (not good or draw(st.booleans()))
        value = draw(st.sampled_from(bad if is_bad else good))
        wrong |= is_bad
        flag = good == ("",) or (command, option) == ("train", "--resume")
        added.append(option if flag else f"{option}={value}")
    given = {part.split("=")[0] for part in added}
    args = [*command.split(), *(part for part in base if part.split("=")[0] not in given), *added]
    if not known and command in ("train", "tune-crf") and not wrong:  # it could take long
        args += ["--seed=-1"]
        wrong = True
    wanted = "refused" if wrong else "result" if known and len(added) == 1 else None
    return Command(f"{command} {' '.join(added)}"[:200], args, files, wanted, check=whole_files)


def whole_files(folder: Path, _ended: Ended) -> None:
    """Every file that a command left can be read by the kind that its name says."""
    for path in folder.rglob("*"):
        whole = content(path) if path.is_file() else None  # which raises where it is not
        if path.name.endswith("_labels.png"):
            label_map(path)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                for name in {*arrays.files} - {"class_names"}:
                    require(np.isfinite(arrays[name]).all(), f"{path.name}: {name} is not finite")
        elif path.suffix == ".csv":
            cells = [cell for row in whole for cell in (*row, *row.values())]
            require(None not in cells, f"{path.name}: rows of different lengths")
        elif path.suffix == ".safetensors":
            load_model(path)
        elif path.name == "crf.toml":
            CRFSettings.from_toml(path)


@st.composite
def words(draw: Any) -> Case:
    """Any words at all behind the name of a command; files of every kind lie about."""
    command = draw(st.sampled_from((*LINES, "export", "demo", "nonsense", "")))
    names = ["a.png", "set", ".", "w.pth", "text", "-", "--", "--nonsense", "-x", "--out"]
    given = draw(st.lists(st.sampled_from([*names, "--help=3"]) | ANY_TEXT, max_size=4))
    if command in ("train", "demo", "evaluate", "tune-crf") or "export" in command:
        given = ["--nonsense", *given]  # a line that is right here would take long
    files = {"a.png": IMAGE, "w.pth": OTHER_FILES["pickle"], "text": b"text"}
    return Command(f"{command} {given!r:.100}", [*command.split(), *given], files)


def cases(_shared: Path) -> st.SearchStrategy[Case]:
    return st.one_of(drawn_line(), drawn_line(), drawn_line(), drawn_line(), words())


def handmade(_shared: Path) -> list[Case]:
    made: list[Case] = [
        Command("help", ["--help"], wanted="result"),
        Command("version", ["--version"], wanted="result"),
    ]
    for command, (base, files) in LINES.items():
        made.append(Command(f"{command} --help", [*command.split(), "--help"], wanted="result"))
        args = [*command.split(), *base]
        made.append(Command(f"{command} as it is", args, files, "result", check=whole_files))
        for option in options_of(command):  # each wrong value of each option, alone
            for value in (pool(command, option) or ((), ()))[0]:
                line = [part for part in base if part.split("=")[0] != option]
                added = option if option == "--resume" else f"{option}={value}"
                args = [*command.split(), *line, added]
                made.append(Command(f"{command} {option}={value}", args, files, "refused"))
    made += [
        Command(f"export {place}", ["export", place, f"--weights={WEIGHTS}"], SET, "refused")
        for place in (".", "set", "x.txt", "")
    ]
    for size in ("", "0x0", "x", "33", "33x33x33", "-33x33", "99999x99999"):
        args = ["export", "x.pt2", f"--weights={WEIGHTS}", f"--size={size}"]
        made.append(Command(f"export --size {size}", args, {}, "refused"))
    return made


FAMILY = Family("options", "every option of every command", write_weights, cases, handmade)
