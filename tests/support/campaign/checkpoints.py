"""Weights: our own files and other projects', sound, damaged and hostile, through `convert`,
`segment --weights` and `train --weights`.

Oracles: a sound file gives the tensors that it was made of. A file with checksums (a zip archive of
PyTorch's), or one that was cut off, gives these tensors or is refused. What describes a model (the
metadata of our own files) is taken only where a model can be built of it.
"""

import io
import json
import struct
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from checkpoints import branches, caffe_resnet, caffemodel, isht7, kazuto1011, with_statistics
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from campaign import damage
from campaign.case import Case, Command, Ended, require
from campaign.network import label_map
from campaign.rasters import png, raster
from campaign.runner import Family
from campaign.toml_texts import VALUES
from deeplab.model import DeepLab, build
from deeplab.weights import load_model

BLOCKS = (2, 2, 1, 1)
MODEL = "deeplab_v2_small"
PICTURE = {"a.png": png(raster("few", 12, 14, 3), 2)}
EXACT = ("own.safetensors", "kazuto1011.pth", "isht7.pth", "legacy.pth")
FORMS = (*EXACT, "new.caffemodel", "old.caffemodel")


@lru_cache
def theirs() -> DeepLab:
    torch.manual_seed(1)
    return with_statistics(build(MODEL, num_classes=3, style="caffe").eval())


def _pth(state: Any, zipped: bool = True) -> bytes:
    content = io.BytesIO()
    torch.save(state, content, _use_new_zipfile_serialization=zipped)
    return content.getvalue()


def _layers(model: DeepLab) -> dict[str, list[Tensor]]:
    state = model.state_dict()
    layers = caffe_resnet(state, BLOCKS)
    for number, pair in enumerate(branches(state, "head.classifier", 4)):
        layers[f"fc1_voc12_c{number}"] = pair
    return layers


@lru_cache
def whole(form: str) -> bytes:
    model = theirs()
    if form == "own.safetensors":
        return own({})
    if form.endswith(".caffemodel"):
        return caffemodel(_layers(model), old=form.startswith("old"))
    if form == "isht7.pth":
        return _pth(isht7(model))
    return _pth(kazuto1011(model), zipped=form != "legacy.pth")


def own(changes: dict[str, Any]) -> bytes:
    """Our own file; `changes` to its metadata, None takes an entry out."""
    config = dict(theirs().config)
    about: dict[str, Any] = {"model": config.pop("model"), "num_classes": config.pop("num_classes")}
    about |= {"options": config, "class_names": ["a", "b", "c"], "palette": [[0, 0, 0]] * 3}
    about |= changes
    stored = {key: json.dumps(value) for key, value in about.items() if value is not None}
    return save(dict(theirs().state_dict()), stored)


def written(name: str, content: Callable[[], bytes]) -> Callable[[Path], None]:
    """Lays a large file down when its case is run, not when it is drawn."""
    return lambda folder: (folder / name).write_bytes(content()) and None


def equals(exact: bool, folder: Path, _ended: Ended) -> None:
    found = load_model(folder / "out.safetensors").state_dict()
    for name, tensor in theirs().state_dict().items():
        same = torch.equal if exact else partial(torch.allclose, rtol=1e-4, atol=1e-5)
        require(same(found[name], tensor), f"{name} differs from what the file was made of")


def convert(name: str) -> list[str]:
    return ["convert", name, "out.safetensors", "--model", MODEL, "--classes", "3"]


def segment(name: str) -> list[str]:
    return ["segment", "a.png", "--weights", name, "--no-crf", "--out", "out"]


@st.composite
def harmed(draw: Any) -> Case:
    form, how = draw(st.sampled_from(FORMS)), draw(st.sampled_from(sorted(damage.DAMAGES)))
    seed = draw(damage.seeds())
    lay = written(form, lambda: damage.damaged(whole(form), how, seed))
    sealed = how in damage.CUTS or form in ("kazuto1011.pth", "isht7.pth")
    check = partial(equals, form in EXACT) if sealed else _one_model
    return Command(f"{form}, {how}", convert(form), names=[form], check=check, prepare=lay)


@st.composite
def own_harmed(draw: Any) -> Case:
    """Our own file, damaged in front, where its header is: segmented with."""
    how, seed = draw(st.sampled_from(sorted(damage.DAMAGES))), draw(damage.seeds())

    def content() -> bytes:
        sound = whole("own.safetensors")
        return damage.damaged(sound[:9000], how, seed) + sound[9000:]

    name = "w.safetensors"
    lay, said = written(name, content), f"our own header, {how}"
    return Command(said, segment(name), PICTURE, names=[name], check=_labels, prepare=lay)


KEYS = (
    *("model", "num_classes", "options", "class_names", "palette", "crf", "recipe", "metrics"),
    "mean",
)


@st.composite
def described(draw: Any) -> Case:
    """Our own file whose metadata say anything."""
    key, value = draw(st.sampled_from(KEYS)), draw(VALUES)
    changes = {key: value}
    if key == "options" and draw(st.booleans()):
        option = draw(st.sampled_from(("rates", "scales", "style", "width", "crf", "x")))
        options = {**theirs().config, option: value}
        del options["model"], options["num_classes"]
        changes = {"options": options}
    try:
        json.dumps(changes)
    except (TypeError, ValueError):  # such as dates, which TOML has and JSON has not
        changes = {key: str(value)}
    lay = written("w.safetensors", lambda: own(changes))
    refines = draw(st.booleans())
    args = [arg for arg in segment("w.safetensors") if not (refines and arg == "--no-crf")]
    said = f"metadata {key} = {value!r:.60}"
    return Command(said, args, PICTURE, names=["w.safetensors", "CRF"], check=_labels, prepare=lay)


@st.composite
def changed(draw: Any) -> Case:
    """A state dict with a tensor more, less, or of another shape, type or value."""
    state: dict[str, Any] = dict(kazuto1011(theirs()))
    name = draw(st.sampled_from(sorted(n for n in state if "num_batches" not in n)))
    what = draw(st.sampled_from(sorted(CHANGES)))
    tensor = state[name]

    def content() -> bytes:
        other = dict(state)
        CHANGES[what](other, name, tensor)
        return _pth(other)

    lay = written("k.pth", content)
    same = what in ("float64", "a wrapper's prefix", "not contiguous")
    unsure = what in ("float16", "an integer more")
    wanted = None if unsure else "result" if same else "refused"
    check = partial(equals, True) if same else _one_model
    return Command(f"{name}: {what}", convert("k.pth"), wanted=wanted, check=check, prepare=lay)


def _prefixed(state: dict[str, Any]) -> None:
    for name in list(state):
        state[f"module.{name}"] = state.pop(name)


CHANGES: dict[str, Callable[[dict[str, Any], str, Tensor], Any]] = {
    "left out": lambda state, name, _tensor: state.pop(name),
    "one more": lambda state, _name, tensor: state.update({"extra.weight": tensor}),
    "an integer more": lambda state, _name, _tensor: state.update({"epoch": 3}),
    "an axis more": lambda state, name, tensor: state.update({name: tensor[None]}),
    "empty": lambda state, name, tensor: state.update({name: tensor.flatten()[:0]}),
    "twice as long": lambda state, name, tensor: state.update({name: torch.cat([tensor, tensor])}),
    "NaN": lambda state, name, tensor: state.update({name: torch.full_like(tensor, torch.nan)}),
    "float16": lambda state, name, tensor: state.update({name: tensor.half()}),
    "float64": lambda state, name, tensor: state.update({name: tensor.double()}),
    "complex": lambda state, name, tensor: state.update({name: tensor.to(torch.complex64)}),
    "a list": lambda state, name, tensor: state.update({name: tensor.flatten()[:9].tolist()}),
    "not contiguous": lambda state, name, tensor: state.update(
        {name: tensor.unsqueeze(-1).expand(*tensor.shape, 2)[..., 0]}
    ),
    "a wrapper's prefix": lambda state, _name, _tensor: _prefixed(state),
}


def _one_model(folder: Path, _ended: Ended) -> None:
    """What was written is a whole model of finite numbers."""
    load_model(folder / "out.safetensors")


def _labels(folder: Path, _ended: Ended) -> None:
    require(label_map(folder / "out" / "a_labels.png").shape == (12, 14), "labels of another size")


def cases(_shared: Path) -> st.SearchStrategy[Case]:
    return st.one_of(harmed(), harmed(), own_harmed(), described(), described(), changed())


def handmade(_shared: Path) -> list[Case]:
    made: list[Case] = []
    for form in FORMS:
        lay = written(form, lambda form=form: whole(form))
        same = partial(equals, form in EXACT)
        made.append(Command(form, convert(form), wanted="result", check=same, prepare=lay))
        wrong = [*convert(form)[:-1], "4"]
        made.append(Command(f"{form} for 4 classes", wrong, wanted="refused", prepare=lay))
        other = [*convert(form)[:4], "deeplab_v2_resnet18"]
        made.append(Command(f"{form} for another model", other, wanted="refused", prepare=lay))
    for what, content in damage.OTHER_FILES.items():
        for name in ("w.safetensors", "w.pth", "w.caffemodel"):
            files = {name: content}
            made.append(Command(f"{what} as {name}", convert(name), files, "refused", [name]))
        files = PICTURE | {"w.safetensors": content}
        with_it = segment("w.safetensors")
        made.append(Command(f"{what} to segment with", with_it, files, "refused", ["w.safe"]))
        train = ["train", "--out=w.safetensors", "--weights=w.pth", "--steps=1", "--scenes=1"]
        files = {"w.pth": content}
        made.append(Command(f"{what} to train from", train, files, "refused", ["w.pth"]))
    pickles = {"a number": 3, "a list": [torch.ones(2)], "a model": theirs()}
    for what, value in (pickles | {"code": damage.Dangerous()}).items():
        lay = written("k.pth", lambda value=value: _pth(value))
        made.append(Command(f"a .pth of {what}", convert("k.pth"), wanted="refused", prepare=lay))
    claims = struct.pack("<Q", 2**62) + b"{}"
    files = PICTURE | {"w.safetensors": claims}
    made.append(Command("a header of 2^62 bytes", segment("w.safetensors"), files, "refused"))
    return made


FAMILY = Family("checkpoints", "weights of every origin", lambda _shared: None, cases, handmade)
