"""What a DenseCRF refuses, and how it says so."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from crf.potentials import Bilateral, Gaussian, Pairwise, Potential
from kernels.meanfield.build import not_finite

Features = Mapping[str, Tensor]
NO_TORCHSCRIPT = (
    "torch.jit.{} cannot take crf.DenseCRF: what it filters on depends on each image. Use "
    "torch.export or torch.compile, which take it whole, or take the network without its CRF "
    "(`deeplab export`) and run the CRF on its logits"
)


def refuse_tracing() -> None:
    """Raise RuntimeError under torch.jit.trace.

    A trace would hold the lattices of its example, and use them for every other image.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise RuntimeError(NO_TORCHSCRIPT.format("trace"))


def check_inputs(
    logits: Tensor,
    images: Tensor | None,
    features: Features,
    num_classes: int,
    potentials: Sequence[Potential],
) -> None:
    """Refuse what the arguments of a call cannot be; values are not looked at while compiling.

    Raises:
        TypeError, ValueError: as of `DenseCRF.forward`.
    """
    pairwise = [term.name for term in potentials if isinstance(term, Pairwise)]
    _check_logits(logits, num_classes, is_image=len(pairwise) < len(potentials))
    if images is not None:
        _check_images(images, logits)
    elif any(isinstance(term, Bilateral) for term in potentials):
        raise ValueError(
            "images are missing: the bilateral term compares colours; pass RGB 0-255 "
            "[B, 3, H, W], or build the layer with bilateral=None"
        )
    _check_features(features, pairwise, logits)
    if torch.compiler.is_compiling():
        return
    _check_values(logits, images, features)


def ragged(
    logits: Sequence[Tensor], images: Any, features: Any
) -> Iterator[tuple[Tensor, Tensor | None, Features]]:
    """The arguments of one image after the other, as batches of one."""
    for name, given in (("logits", logits), ("images", images), ("features", features)):
        if given is None and name != "logits":
            continue
        if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != len(logits):
            raise ValueError(
                f"{name} must be a list, one entry an image, as logits are one of {len(logits)}"
            )
    for i, one in enumerate(logits):
        image = None if images is None else images[i][None]
        points = {} if features is None else features[i]
        yield one[None], image, {k: f[None] if f.ndim == 2 else f for k, f in points.items()}


def check_integer(name: str, value: Any, least: int) -> None:
    """Refuse what is not an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Refuse what is not a number from `low` to `high`."""
    number = isinstance(value, float | int) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}")


def check_learn_sigmas(learn_sigmas: Any, learnable: bool, method: str) -> None:
    """Refuse an option that would change nothing, or promise what a method cannot do."""
    if learn_sigmas is not None and not isinstance(learn_sigmas, bool):
        raise ValueError(f"learn_sigmas must be True, False or None, not {learn_sigmas!r}")
    if learn_sigmas is not None and not learnable:
        raise ValueError("learn_sigmas is an option of learnable=True; leave it out")
    if learn_sigmas and method != "exact":
        raise ValueError(
            f'learn_sigmas=True needs method="exact", not {method!r}: only it has gradients to them'
        )


def check_potentials(gaussian: Any, bilateral: Any, pairwise: Any) -> None:
    if not isinstance(pairwise, Sequence):
        raise TypeError(
            f"pairwise must be a sequence of crf.Pairwise, (term,) for a single one, "
            f"not {pairwise!r}"
        )
    for name, term, kind in (
        ("gaussian", gaussian, Gaussian),
        ("bilateral", bilateral, Bilateral),
        *(("pairwise", term, Pairwise) for term in pairwise),
    ):
        if not isinstance(term, kind) and (term is not None or kind is Pairwise):
            raise TypeError(f"{name} must be a crf.{kind.__name__}, not {term!r}")
    names = [term.name for term in pairwise]
    if len(set(names)) < len(names):
        raise ValueError(f"pairwise must hold terms of different names, not {names}")


def _check_logits(logits: Tensor, num_classes: int, is_image: bool) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"logits must be a floating-point tensor, not {kind}")
    fits = logits.ndim == 4 if is_image else logits.ndim >= 3
    if not fits or logits.shape[1] != num_classes or 0 in logits.shape[2:]:
        shape = f"[B, {num_classes}, {'H, W' if is_image else '...'}]"
        raise ValueError(
            f"logits must have shape {shape} with at least one pixel, not {tuple(logits.shape)}"
        )


def _check_images(images: Tensor, logits: Tensor) -> None:
    if not isinstance(images, Tensor) or not (
        images.dtype == torch.uint8 or images.is_floating_point()
    ):
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a tensor of uint8 or floating point, not {kind}")
    batch, _, height, width = logits.shape
    if images.shape != (batch, 3, height, width):
        raise ValueError(
            f"images must be RGB of shape [{batch}, 3, {height}, {width}], as the logits are, "
            f"not {tuple(images.shape)}; resize the logits to the images first"
        )
    check_device("images", images, logits)


def _check_features(features: Features, names: list[str], logits: Tensor) -> None:
    if set(features) != set(names):
        raise ValueError(
            f"features must hold one entry for each term of pairwise, {sorted(names)}, "
            f"not {sorted(features)}"
        )
    batch, count = logits.shape[0], math.prod(logits.shape[2:])
    for name, points in features.items():
        if not isinstance(points, Tensor) or not points.is_floating_point():
            kind = points.dtype if isinstance(points, Tensor) else type(points).__name__
            raise TypeError(f"features[{name!r}] must be a floating-point tensor, not {kind}")
        fits = points.ndim == 3 and points.shape[0] in (1, batch) and points.shape[1] == count
        if not fits or points.shape[2] == 0:
            raise ValueError(
                f"features[{name!r}] must have shape [B, N, D] = [{batch}, {count}, D], one row a "
                f"pixel and D at least 1, not {tuple(points.shape)}"
            )
        check_device(f"features[{name!r}]", points, logits)


def check_device(name: str, tensor: Tensor, logits: Tensor, mend: str = "") -> None:
    """Refuse what is not on the device of the logits."""
    if tensor.device != logits.device:
        raise ValueError(
            f"{name} (on {tensor.device}) must be on the device of the logits "
            f"({logits.device}){mend}"
        )


def _check_values(logits: Tensor, images: Tensor | None, features: Features) -> None:
    """NaN, Inf and grey levels; one transfer for all, for which the host waits on a GPU."""
    named = {"logits": logits, **{f"features[{name!r}]": f for name, f in features.items()}}
    if images is not None and images.dtype != torch.uint8:
        named["images"] = images
    named = {name: tensor for name, tensor in named.items() if tensor.numel()}
    if not named:
        return
    extremes = [extreme for tensor in named.values() for extreme in tensor.detach().aminmax()]
    with torch.autocast(logits.device.type, enabled=False):  # which would cast what is compared
        numbers = torch.stack(extremes).tolist()
    for name, low, high in zip(named, numbers[::2], numbers[1::2], strict=True):
        if not (math.isfinite(low) and math.isfinite(high)):  # of a NaN both are NaN
            raise ValueError(not_finite(name))
    if "images" in named:
        _check_grey_levels(*numbers[-2:])


def _check_grey_levels(low: float, high: float) -> None:
    if low < 0 or high > 255:
        raise ValueError(
            f"images must hold RGB values 0-255, but range from {low:g} to {high:g}; pass the "
            "image as it was before a network's preprocessing, clamped if it was resampled"
        )
    if 0 < high <= 1:
        warnings.warn(
            f"images hold values up to {high:g}, but RGB 0-255 is expected: multiply by 255 if "
            "they are scaled to 0-1, or the bilateral term sees one colour",
            stacklevel=5,
        )
