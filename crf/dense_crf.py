"""DenseCRF: the fully connected CRF as a layer, batched and differentiable in the logits.

    Q <- softmax(-U - sum_k w_k mu (F_k Q)),    U = -log softmax(logits),    Q_0 = softmax(-U)

F_k is a Gaussian filter over all pixels of an image, normalised by n = F_k(1). The terms are those
of crf/potentials.py.

Sources: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials" (2011), algorithm 1; Chen et al., "DeepLab", TPAMI 2018, section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crf import inference
from crf.inference import PairwiseTerm
from crf.potentials import (
    NORMALIZATIONS,
    Bilateral,
    Gaussian,
    Normalization,
    Pairwise,
    compatibility_matrix,
    penalty,
)

Method = Literal["permutohedral", "exact"]
METHODS: tuple[Method, ...] = ("permutohedral", "exact")
Features = Mapping[str, Tensor]


class DenseCRF(nn.Module):
    """Mean-field inference in a fully connected CRF, after the logits of a network.

    The defaults are those of DeepLab v2's script. No parameters are learned, and nothing of the
    layer enters a state_dict.

    Args:
        num_classes: C.
        gaussian: the smoothness term, or None to leave it out.
        bilateral: the appearance term, or None to leave it out.
        pairwise: further terms, whose features come with each call.
        iterations: mean-field updates, 0 or more.
        method: how to filter. `"permutohedral"`, the lattice of pydensecrf, for all terms;
            `"exact"`, all pairs of pixels, and a pass over rows and one over columns for the
            smoothness term: the truth, in time quadratic in the number of pixels.
        normalization: of each filter by its mass n: `"symmetric"`, 1 / sqrt(n) before and after
            (as pydensecrf); `"after"`, 1 / n (as DeepLab's own code); `"before"`; `"none"`.
        compatibility: the penalty mu for each pair of labels: `"potts"`, 1 - identity, or a matrix
            `[C, C]`, used as it is (pydensecrf takes the mean with its transpose).

    Raises:
        TypeError: a term of another type.
        ValueError: a number out of range, an unknown name, two terms of one name.
    """

    compatibility: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        gaussian: Gaussian | None = Gaussian(weight=3.0, sigma_xy=3.0),  # noqa: B008 (frozen)
        bilateral: Bilateral | None = Bilateral(weight=4.0, sigma_xy=49.0, sigma_rgb=5.0),  # noqa: B008
        pairwise: Sequence[Pairwise] = (),
        iterations: int = 10,
        method: Method = "permutohedral",
        normalization: Normalization = "symmetric",
        compatibility: Any = "potts",
    ) -> None:
        super().__init__()
        _check_integer("num_classes", num_classes, least=1)
        _check_integer("iterations", iterations, least=0)
        _check_option("method", method, METHODS)
        _check_option("normalization", normalization, NORMALIZATIONS)
        _check_terms(gaussian, bilateral, pairwise)
        self.num_classes = num_classes
        self.gaussian = gaussian
        self.bilateral = bilateral
        self.pairwise = tuple(pairwise)
        self.iterations = iterations
        self.method = method
        self.normalization = normalization
        matrix = compatibility_matrix(compatibility, num_classes)
        self.register_buffer("compatibility", matrix, persistent=False)

    def forward(
        self,
        logits: Tensor,
        images: Tensor,
        features: Features | None = None,
        return_kl: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Marginals Q of every pixel.

        Args:
            logits: floating point `[B, C, H, W]`; U = -log softmax(logits).
            images: RGB `[B, 3, H, W]`, values 0-255, uint8 or floating point. Images of a batch do
                not mix.
            features: `[B, H*W, D]` by the name of each term of `pairwise`, pixel y * W + x, already
                divided by sigma.
            return_kl: whether to return the divergence of Q from the model too.

        Returns:
            Marginals `[B, C, H, W]`, float64 for float64 logits and else float32, under autocast
            too; differentiable in the logits, with `method="exact"` also in images and features.
            With `return_kl` a pair of them and the divergence, float64 `[iterations + 1, B]`: for
            the start and after each update, up to a constant, sum Q log Q + sum U Q +
            sum_k sum Q E_k(Q), pairwise energies E_k counted twice and, for Potts, as -w F(Q):
            pydensecrf's klDivergence.

            `torch.compile(fullgraph=True)` takes the call whole, except `return_kl` on the lattice.

        Raises:
            TypeError: a dtype that does not fit.
            ValueError: shapes or devices that do not fit, images out of 0-255, NaN or Inf, missing
                or unknown features, or a gradient to images or features, which the lattice lacks.
                A compiled call with `method="exact"` does not look at values.
        """
        self._check_inputs(logits, images, features)
        if not return_kl:
            return self._infer(logits, images, features, marginals=True)
        with torch.autocast(logits.device.type, enabled=False):
            unary = _unary(logits)
            terms = self._terms(unary, *self._potentials(unary, images, features), images.shape)
            field, divergence = inference.composed_field_and_divergence(
                unary.transpose(1, 2).contiguous(), terms, self.iterations
            )
            return _as_maps(field.softmax(2), logits.shape), divergence

    def field(self, logits: Tensor, images: Tensor, features: Features | None = None) -> Tensor:
        """The last field before the softmax, `[B, C, H, W]`: softmax(field) are the marginals.

        What a loss wants, as logits of the refined segmentation; without iterations it is
        log softmax(logits). Arguments and errors as of `forward`.
        """
        self._check_inputs(logits, images, features)
        return self._infer(logits, images, features, marginals=False)

    def extra_repr(self) -> str:
        terms = [f"gaussian={self.gaussian}", f"bilateral={self.bilateral}"]
        if self.pairwise:
            terms.append(f"pairwise={self.pairwise}")
        compatibility = "'potts'" if self.compatibility is None else "matrix"
        return (
            f"num_classes={self.num_classes}, {', '.join(terms)}, iterations={self.iterations}, "
            f"method={self.method!r}, normalization={self.normalization!r}, "
            f"compatibility={compatibility}"
        )

    def _infer(
        self, logits: Tensor, images: Tensor, features: Features | None, marginals: bool
    ) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            unary = _unary(logits)
            points, penalties = self._potentials(unary, images, features)
            if self.method == "permutohedral":
                compiling = torch.compiler.is_compiling()
                infer = inference.lattice_mean_field if compiling else inference.infer_on_lattices
                settings = self.normalization, self.iterations, logits.shape[3], marginals
                return infer(unary, points, penalties, *settings).reshape(logits.shape)
            terms = self._terms(unary, points, penalties, images.shape)
            field = inference.composed_field(
                unary.transpose(1, 2).contiguous(), terms, self.iterations
            )
            return _as_maps(field.softmax(2) if marginals else field, logits.shape)

    def _potentials(
        self, unary: Tensor, images: Tensor, features: Features | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Features `[B, N, D]` and the penalty of each term, in the order of the terms."""
        images = images.to(unary.dtype)
        points = [term.features(images) for term in (self.gaussian, self.bilateral) if term]
        points += [(features or {})[term.name].to(unary.dtype) for term in self.pairwise]
        wants_gradient = torch.is_grad_enabled() and any(p.requires_grad for p in points)
        if self.method == "permutohedral" and wants_gradient:
            raise ValueError(
                'method="permutohedral" has no gradient to images or features: use '
                'method="exact", or detach them'
            )
        terms = [term for term in (self.gaussian, self.bilateral, *self.pairwise) if term]
        return points, [penalty(term.weight, self.compatibility, like=unary) for term in terms]

    def _terms(
        self, unary: Tensor, points: list[Tensor], penalties: list[Tensor], shape: torch.Size
    ) -> list[PairwiseTerm]:
        """Differentiable terms; `shape` is that of the images."""
        if self.method == "permutohedral":
            return inference.lattice_terms(points, penalties, self.normalization)
        filters: list[inference.Filter] = [inference.PairFilter(p) for p in points]
        if self.gaussian is not None:
            filters[0] = inference.GridFilter.over(
                shape[2], shape[3], self.gaussian.sigmas, like=unary
            )
        ones = unary.new_ones(unary.shape[0], unary.shape[2], 1)
        return [
            PairwiseTerm.normalized(filter, cost, self.normalization, ones)
            for filter, cost in zip(filters, penalties, strict=True)
        ]

    def _check_inputs(self, logits: Tensor, images: Tensor, features: Features | None) -> None:
        _check_logits(logits, self.num_classes)
        _check_images(images, logits)
        _check_features(features or {}, [term.name for term in self.pairwise], logits)
        if not torch.compiler.is_compiling():
            inference.require_finite("logits", logits)
            _check_grey_levels(images)
            for name, points in (features or {}).items():
                inference.require_finite(f"features[{name!r}]", points)


def _unary(logits: Tensor) -> Tensor:
    """-log softmax, `[B, C, N]`, float32 unless the logits are float64."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return -logits.to(dtype).log_softmax(1).flatten(2)


def _as_maps(values: Tensor, shape: torch.Size) -> Tensor:
    """`[B, N, C]` as `[B, C, H, W]`."""
    return values.transpose(1, 2).contiguous().reshape(shape)


def _check_logits(logits: Tensor, num_classes: int) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"logits must be a floating-point tensor, not {kind}")
    if logits.ndim != 4 or logits.shape[1] != num_classes or 0 in logits.shape[2:]:
        raise ValueError(
            f"logits must have shape [B, {num_classes}, H, W] with at least one pixel, "
            f"not {tuple(logits.shape)}"
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
    _check_device("images", images, logits)


def _check_features(features: Features, names: list[str], logits: Tensor) -> None:
    if set(features) != set(names):
        raise ValueError(
            f"features must hold one entry for each term of pairwise, {sorted(names)}, "
            f"not {sorted(features)}"
        )
    batch, _, height, width = logits.shape
    for name, points in features.items():
        if not isinstance(points, Tensor) or not points.is_floating_point():
            kind = points.dtype if isinstance(points, Tensor) else type(points).__name__
            raise TypeError(f"features[{name!r}] must be a floating-point tensor, not {kind}")
        shape = (batch, height * width)
        if points.ndim != 3 or points.shape[:2] != shape or points.shape[2] == 0:
            raise ValueError(
                f"features[{name!r}] must have shape [B, H*W, D] = [{batch}, {height * width}, D] "
                f"with D at least 1, not {tuple(points.shape)}"
            )
        _check_device(f"features[{name!r}]", points, logits)


def _check_device(name: str, tensor: Tensor, logits: Tensor) -> None:
    if tensor.device != logits.device:
        raise ValueError(
            f"{name} (on {tensor.device}) must be on the device of the logits ({logits.device})"
        )


def _check_grey_levels(images: Tensor) -> None:
    if images.dtype == torch.uint8 or images.numel() == 0:
        return
    inference.require_finite("images", images)
    low, high = (float(level) for level in images.detach().aminmax())
    if low < 0 or high > 255:
        raise ValueError(
            f"images must hold RGB values 0-255, but range from {low:g} to {high:g}; pass the "
            "image as it was before a network's preprocessing, clamped if it was resampled"
        )


def _check_integer(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")


def _check_option(name: str, value: Any, options: Sequence[str]) -> None:
    if value not in options:
        raise ValueError(f"{name} must be one of {list(options)}, not {value!r}")


def _check_terms(gaussian: Any, bilateral: Any, pairwise: Any) -> None:
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
