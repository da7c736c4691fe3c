"""Weights from any of the files that people have, into a model made already.

`deeplab.weights.sources` lists them. Body and head are treated apart: the body must fit to the last
tensor; of the head, layers that fit are taken and the others, such as a classifier for other
classes or none at all, stay as they are, with a warning.

The model keeps its own scales and way of resizing: `load_checkpoint` makes one with the file's.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from deeplab.errors import InputError
from deeplab.model import DeepLab
from deeplab.model.heads import MultiRateConv2d
from deeplab.model.multiscale import Resize
from deeplab.weights import bands, file, names
from deeplab.weights.caffemodel import Window
from deeplab.weights.names import Translated
from deeplab.weights.sources import Checkpoint, Source, check_source, is_own, read_checkpoint

POOLINGS = nn.MaxPool2d | nn.AvgPool2d
FEW = 6  # tensors that are named one by one
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` did.

    Attributes:
        source: what the file is.
        initialised: tensors of the model that now hold the file's values.
        skipped: tensors of the model's head that the file has no fitting values for.
        dropped: what of the file has no use here, and why: counters, auxiliary classifiers and
            copies by the file's names, layers of another head by this package's.
        scales, resize: at which scales the weights were trained (MSC), and how those are resized;
            None where they are of one scale, or the file does not tell.
        adapted: tensors of three channels that were adapted to the model's bands, see
            `deeplab.weights.bands`.
    """

    source: Source
    initialised: tuple[str, ...]
    skipped: tuple[str, ...]
    dropped: Mapping[str, str]
    scales: tuple[float, ...] | None = None
    resize: Resize | None = None
    adapted: tuple[str, ...] = ()


def load_weights(model: DeepLab, path: file.StrPath, source: Source = "auto") -> Loaded:
    """Copy the file's tensors into `model`, converted to its dtype and device.

    Everything is checked first: on an error the model is unchanged. A state dict of this package's
    models does not tell its style and rates: they are taken to be the model's. Convolutions that
    see the picture are adapted from three channels to the model's bands, which warns, too; so do
    weights of a model with another mean or deviation of its own.

    Args:
        path: a file of any source of `deeplab.weights.sources`, or a name of
            `deeplab.weights.registry`.
        source: what it is; "auto" looks inside.

    Returns what was loaded. Head tensors left as they were are in `skipped`, and in a warning.

    Raises:
        InputError: the file is unreadable or another source's, was made for a model of another
            style, other rates, strides or poolings, or its tensors do not fit: missing, unexpected
            and differently shaped ones are listed.
    """
    path = file.named_path(path)
    if is_own(path):
        check_source(path, "safetensors", source)
        initialised, skipped, adapted = file.load_own(model, path)
        scales, resize = file.stored_scales(path)
        loaded = Loaded("safetensors", initialised, skipped, {}, scales, resize, adapted)
    else:
        loaded = copy_checkpoint(model, read_checkpoint(path, source))
    if loaded.skipped:
        warnings.warn(
            f"{path}: has no weights for {missing(model, loaded.skipped)} of this model, which "
            "stay as they are; train them before use",
            stacklevel=2,
        )
    if loaded.adapted:
        warnings.warn(f"{path}: {bands.note(model, loaded.adapted)}", stacklevel=2)
    return loaded


def missing(model: DeepLab, skipped: Sequence[str]) -> str:
    """Tensors of a model that a file does not have, in words: by name where they are few.

    "head.classifier.weight, head.classifier.bias", or "head (40 tensors)".
    """
    if len(skipped) <= FEW:
        return ", ".join(skipped)
    every, counts = (_by_part(some) for some in (file.network_state(model), skipped))
    return " and ".join(
        f"{part} ({count} tensors)"
        if count == every[part]
        else f"{part} ({count} of {every[part]} tensors)"
        for part, count in counts.items()
    )


def _by_part(tensors: Iterable[str]) -> Counter[str]:
    """How many there are of backbone, head and taps, without counters, which no file needs."""
    return Counter(n.partition(".")[0] for n in tensors if not n.endswith(names.COUNTER))


def copy_checkpoint(model: DeepLab, checkpoint: Checkpoint) -> Loaded:
    """As `load_weights`, from a foreign file that has been read, and without a warning."""
    path = checkpoint.path
    _check_style(model, checkpoint)
    state = file.network_state(model)
    expected = {name: t for name, t in state.items() if not name.endswith(names.COUNTER)}
    translated, adapted = _adapted(model, checkpoint, expected)
    tensors = translated.tensors
    body = [name for name in expected if name.startswith("backbone.")]
    theirs = [name for name in tensors if name.startswith("backbone.")]
    file.refuse_misfits(
        model,
        path,
        missing=[name for name in body if name not in tensors],
        unexpected=[*translated.unknown, *(name for name in theirs if name not in expected)],
        shapes=[
            f"{name} {list(tensors[name].shape)} instead of {list(expected[name].shape)}"
            for name in body
            if name in tensors and tensors[name].shape != expected[name].shape
        ],
    )
    fitting, skipped = _head(model, expected, translated, path)
    chosen = {name: tensors[name] for name in (*body, *fitting)}
    left = {name: "of a head that does not fit" for name in tensors if name not in chosen}
    _check_windows(model, checkpoint.windows, chosen, path)
    for name, tensor in _in_dtypes_of(state, chosen, path).items():
        state[name].copy_(tensor)
    scales, dropped = translated.scales, translated.dropped | left
    resize = translated.resize if scales else None
    taken = tuple(name for name in adapted if name in chosen)
    return Loaded(checkpoint.source, tuple(chosen), tuple(skipped), dropped, scales, resize, taken)


def _check_style(model: DeepLab, checkpoint: Checkpoint) -> None:
    style = checkpoint.style
    # Without rates, as for pictures, bodies of these two styles are one.
    if checkpoint.translated.of_pictures and {style, model.style} == {"torchvision", "smp"}:
        return
    if style not in (None, model.style):
        raise InputError(
            f"{checkpoint.path}: weights of style {style} ({checkpoint.source}), and the model is "
            f"of style {model.style}: shapes agree, but strides, poolings and input differ, which "
            f'costs accuracy; build the model with style="{style}"'
        )


def _adapted(
    model: DeepLab, checkpoint: Checkpoint, expected: Mapping[str, Tensor]
) -> tuple[Translated, list[str]]:
    """What the file has, tensors that see the picture adapted to the model's bands; their names.

    A state dict of this package's models does not tell its style: with three bands it is taken to
    be of a model with the same mean.
    """
    tensors = dict(checkpoint.translated.tensors)
    style = checkpoint.style or (model.style if model.in_channels != 3 else None)
    shapes, stored = ({n: t.shape for n, t in given.items()} for given in (expected, tensors))
    layers = bands.to_adapt(model, shapes, stored, grey_levels=style == "caffe")
    for name in layers:
        if tensors[name].dtype in FLOATING:  # others are refused below
            tensors[name] = bands.adapted(tensors[name], model.in_channels, style == "caffe")
    return replace(checkpoint.translated, tensors=tensors), layers


def _head(
    model: DeepLab, expected: Mapping[str, Tensor], translated: Translated, path: Path
) -> tuple[list[str], list[str]]:
    """Tensors of head and taps that fit, and those that stay as they are.

    A layer is taken whole or not at all. Of the head, layers behind one that does not fit stay too.
    Branches are counted: two for 42 classes have as many rows as four for 21.
    """
    tensors, modules = translated.tensors, dict(model.named_modules())
    fitting: list[str] = []
    skipped: list[str] = []
    behind = False
    layers: dict[str, list[str]] = {}
    for name in expected:
        if not name.startswith("backbone."):
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    for layer, members in layers.items():
        given = [name for name in members if name in tensors]
        if given and len(given) < len(members):
            raise InputError(
                f"{path}: of {layer} it has {file.some(given)} but not "
                f"{file.some([name for name in members if name not in given])}; the file is "
                "incomplete: fetch it again"
            )
        fits = bool(given) and all(tensors[n].shape == expected[n].shape for n in members)
        if branches := _branches(modules[layer]):
            fits = fits and all(translated.branches.get(n, branches) == branches for n in members)
        if fits and not (behind and layer.startswith("head.")):
            fitting += members
        else:
            skipped += members
            behind = behind or layer.startswith("head.")
    return fitting, skipped


def _check_windows(
    model: DeepLab, windows: Mapping[str, Window], taken: Iterable[str], path: Path
) -> None:
    """Refuse weights of layers that move otherwise than the model's; no shape would tell.

    Two kinds of file are for training to start from, and may differ: those that give a body alone,
    and those whose body has no rates, a classifier's, which gets them by being loaded.
    """
    weights, modules = set(taken), dict(model.named_modules())
    places = {name: place for name in windows if (place := names.caffe_window(name))}
    body = [name for name, (layer, _) in places.items() if layer.startswith("backbone.")]
    dilated = any(windows[name].rate > 1 for name in body)
    if not dilated or not any(weight.startswith("head.") for weight in weights):
        return
    branches: dict[str, list[int]] = {}
    for layer, number in sorted(places.values()):
        branches.setdefault(layer, []).append(number)
    differing = []
    for name, (layer, number) in places.items():
        module, theirs = modules.get(layer), windows[name]
        if module is None and ".pool" in layer:
            differing.append(f"it has {name}, and this model has none")
        elif isinstance(module, POOLINGS) or (
            f"{layer}.weight" in weights and len(branches[layer]) == _branches(module)
        ):
            ours = _window(module, branches[layer].index(number))
            differing += [f"{name} has {said}" for said in _differences(theirs, ours)]
    if any(".pool" in layer for layer in branches):
        differing += [
            f"it has no {layer.removeprefix('backbone.')}"
            for layer, module in modules.items()
            if isinstance(module, POOLINGS) and layer not in branches
        ]
    if differing:
        raise InputError(
            f"{path}: of another network than {model.config['model']}, though shapes agree: "
            f"{file.some(differing)}; choose the model, or give the rates, that these weights were "
            "trained with"
        )


def _branches(module: nn.Module | None) -> int:
    """How many convolutions lie stacked in a layer of a head; 0 where it is none."""
    if isinstance(module, MultiRateConv2d):
        return len(module.rates)
    if not isinstance(module, nn.Conv2d) or module.groups == module.in_channels > 1:
        return 0  # depthwise groups are channels
    return module.groups


def _window(module: nn.Module | None, branch: int) -> Window:
    if isinstance(module, MultiRateConv2d):
        return Window(3, 1, module.rates[branch], module.rates[branch])
    assert isinstance(module, nn.Conv2d | POOLINGS)
    rate = module.dilation if isinstance(module, nn.Conv2d) else 1
    lengths = (module.kernel_size, module.stride, module.padding, rate)
    return Window(*(n if isinstance(n, int) else int(n[0]) for n in lengths))


def _differences(theirs: Window, ours: Window) -> list[str]:
    """What differs, with both values. The padding follows from the rate."""
    kinds = ("rate",) if theirs.rate != ours.rate else ("kernel", "stride", "padding")
    return [
        f"{kind} {getattr(theirs, kind)} instead of {getattr(ours, kind)}"
        for kind in kinds
        if getattr(theirs, kind) != getattr(ours, kind)
    ]


def _in_dtypes_of(
    state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """The tensors as the model keeps them; refuses what is no real number, or none there."""
    odd = [name for name, tensor in tensors.items() if tensor.dtype not in FLOATING]
    if odd:
        dtypes = sorted({str(tensors[name].dtype).removeprefix("torch.") for name in odd})
        raise InputError(
            f"{path} must be floating point of 16 to 64 bits, not {', '.join(dtypes)} in "
            f"{file.some(odd)}; fetch the weights as they were before they were quantized"
        )
    converted = {name: tensor.to(state[name].dtype) for name, tensor in tensors.items()}
    broken = [name for name, tensor in converted.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError(
            f"{path}: NaN or Inf in {len(broken)} tensors: {file.some(broken)}; the file is "
            "damaged, or its numbers are too large for the model's dtype: fetch it again"
        )
    return converted
