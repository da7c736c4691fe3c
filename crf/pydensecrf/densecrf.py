"""Drop-in for `pydensecrf.densecrf`: the same names, signs and results, NumPy in and out.

Change the import lines and nothing else:

    import numpy as np
    import crf.pydensecrf.densecrf as dcrf                # was: import pydensecrf.densecrf as dcrf
    from crf.pydensecrf.utils import unary_from_softmax   # was: from pydensecrf.utils import ...

    height, width = image.shape[:2]                    # uint8 RGB [height, width, 3]
    d = dcrf.DenseCRF2D(width, height, nlabels)        # width first; pixel index is y * width + x
    d.setUnaryEnergy(unary_from_softmax(softmax))      # [nlabels, height, width]
    d.addPairwiseGaussian(sxy=3, compat=3)
    d.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    labels = np.argmax(d.inference(10), axis=0).reshape(height, width)

The model is that of Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with
Gaussian Edge Potentials" (2011), filtered on the permutohedral lattice:

    E_i(Q) = U_i + sum_k compat_k(F_k(Q))_i,    Q <- softmax(-E(Q)),    Q_0 = softmax(-U)
    compat(y) = -w y for a number w (Potts); +v * y for a vector; +1/2 (M + M^T) y for a matrix

F_k sums over all pixels, the pixel itself included, and is normalised by n = F_k(1): SYMMETRIC
scales by 1/sqrt(n) before and after the filter, BEFORE and AFTER by 1/n on one side.

What differs from pydensecrf:

- Inference returns plain float32 arrays `[nlabels, nvar]`, where pydensecrf returns a wrapped
  matrix that `np.array` unwraps. `startInference` gives `Q, tmp1, tmp2` as before, but the two
  buffers are empty and unused.
- More is accepted: any real dtype (converted to float32), non-contiguous arrays, torch tensors,
  feature matrices of any width with `setUnaryEnergy(L, f)`, one `Unary` for several CRFs,
  subclasses. Images must be uint8 as before: a float image could mean 0 ... 1 or 0 ... 255.
- What pydensecrf takes in silence and then reads out of bounds, ignores or turns into NaN raises
  ValueError here: `compat` or a `Unary` of the wrong shape, a sigma that is not positive, NaN,
  an unknown kernel or normalisation. Small sigmas do not overflow (pydensecrf's keys are 16-bit).
- It runs on `torch.get_num_threads()` threads. Results are the same, bit for bit, from run to run
  with one number of threads; another number changes the last bits, as the order of sums does.
- Forked processes may call it, also where torch has computed in parallel before, which makes torch
  itself hang in them.
- The kernel type only matters for learning, which pydensecrf does not wrap: it is checked, and
  changes nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crf.pydensecrf.arguments import (
    FloatArray,
    array_of,
    floats,
    integer,
    member,
    standard_deviations,
)
from crf.sigmas import Divisor, too_large, too_small
from kernels.meanfield import Normalization, Term
from kernels.meanfield.api import mean_field_of_usable
from kernels.meanfield.filters import pixel_order
from kernels.permutohedral import UnplaceableError

__all__ = [
    "CONST_KERNEL",
    "DIAG_KERNEL",
    "FULL_KERNEL",
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "ConstUnary",
    "DenseCRF",
    "DenseCRF2D",
    "KernelType",
    "LogisticUnary",
    "NormalizationType",
    "Unary",
]


class KernelType(IntEnum):
    """The kernel's precision matrix, where it is learned. Inference does not depend on it."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(IntEnum):
    """On which side of the filter F the values are scaled, with n = F(1)."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = KernelType
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = NormalizationType
SIDES: tuple[Normalization, ...] = ("none", "before", "after", "symmetric")  # by number


class Unary:
    """A unary energy to hand to `DenseCRF.setUnary`: a `ConstUnary` or a `LogisticUnary`."""

    _energy: FloatArray  # [nlabels, nvar], never written to

    def __init__(self) -> None:
        raise TypeError("Unary is a base class: make a ConstUnary or a LogisticUnary")


class ConstUnary(Unary):
    """Unary energies as they are.

    Args:
        u: -log p, float `[nlabels, nvar]`; copied.

    Raises:
        TypeError, ValueError: as `DenseCRF.setUnaryEnergy`.
    """

    def __init__(self, u: Any) -> None:
        self._energy = _checked_unary(floats("u", u, ndims=(2,), copy=True))


class LogisticUnary(Unary):
    """Unary energies of logistic regression, `L @ f`.

    Args:
        L: float `[nlabels, D]`, the weights of each label.
        f: float `[D, nvar]`, the features of each variable.

    Raises:
        TypeError, ValueError: as `DenseCRF.setUnaryEnergy`.
    """

    def __init__(self, L: Any, f: Any) -> None:
        weights, features = floats("L", L, ndims=(2,)), floats("f", f, ndims=(2,))
        if weights.shape[1] != features.shape[0]:
            raise ValueError(
                f"L [nlabels, D] and f [D, nvar] do not fit: {weights.shape} and {features.shape}"
            )
        self._energy = _checked_unary(weights @ features)


class DenseCRF:
    """A fully connected CRF over `nvar` variables of `nlabels` labels each.

    Args:
        nvar: number of variables (pixels).
        nlabels: number of labels.

    Raises:
        ValueError: a size that is not a positive integer.
    """

    def __init__(self, nvar: int, nlabels: int) -> None:
        self._nvar = integer("nvar", nvar, least=1)
        self._nlabels = integer("nlabels", nlabels, least=1)
        self._shape = self._nlabels, self._nvar
        self._unary: FloatArray | None = None
        self._terms: list[Term] = []
        self._order: torch.Tensor | None = None  # in which the lattices hold the variables

    def setUnary(self, u: Unary) -> None:
        """Set the unary energies, replacing those set before.

        Raises:
            TypeError: not a `Unary`.
            ValueError: energies of another shape than `[nlabels, nvar]`.
        """
        if not isinstance(u, Unary):
            raise TypeError(
                f"u must be a ConstUnary or a LogisticUnary, not {type(u).__name__}; "
                "setUnaryEnergy takes an array"
            )
        if u._energy.shape != self._shape:
            raise ValueError(
                f"Bad shape for unary energy (Need {self._shape}, got {u._energy.shape})"
            )
        self._unary = u._energy

    def setUnaryEnergy(self, u: Any, f: Any = None) -> None:
        """Set the unary energies to `u`, or to `u @ f`, replacing those set before.

        Without any unary, all energies are zero.

        Args:
            u: -log p, float `[nlabels, nvar]`; copied. +inf says that a label is impossible. With
                `f`, float `[nlabels, D]`.
            f: float `[D, nvar]`, or None.

        Raises:
            TypeError: not an array (a list, None).
            ValueError: wrong shape, no real dtype, NaN or -inf, or a variable for which all labels
                are impossible.
        """
        self.setUnary(ConstUnary(u) if f is None else LogisticUnary(u, f))

    def addPairwiseEnergy(
        self,
        features: Any,
        compat: Any,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add the pairwise term `compat(F(Q))`, F having the kernel exp(-|f_i - f_j|^2 / 2).

        Args:
            features: float `[D, nvar]`, already divided by sigma. Not kept.
            compat: a number w (labels that agree gain w: Potts), a float array `[nlabels]` (what
                each label pays for itself, so usually negative), or `[nlabels, nlabels]` (what
                each pays next to each other one; its symmetric part is used).
            kernel: a `KernelType`; without influence.
            normalization: a `NormalizationType`.

        Raises:
            TypeError: `features` or `compat` is no array (a list, None).
            ValueError: wrong shape or dtype, NaN or Inf, an unknown kernel or normalisation, or
                features so large that their lattice cannot be indexed.
        """
        table = floats("features", features, ndims=(2,))
        if table.shape[1] != self._nvar or table.shape[0] == 0:
            raise ValueError(
                f"Bad shape for pairwise energy (Need (?, {self._nvar}), got {table.shape})"
            )
        ordered = table if self._order is None else table.take(self._order.numpy(), axis=1)
        self._add_term(ordered, compat, kernel, normalization, ())

    def inference(self, niter: int) -> FloatArray:
        """Marginals after `niter` mean-field updates, float32 `[nlabels, nvar]`.

        `inference(0)` is softmax(-unary).

        Raises:
            ValueError: `niter` is negative or no integer.
        """
        return self._mean_field(integer("niter", niter, least=0), None)

    def startInference(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Q before the first `stepInference`, and two empty arrays in place of scratch buffers.

        Q is softmax(-unary), or, as in pydensecrf, all zero where no unary was set.
        """
        scratch = np.empty((0, 0), np.float32)
        start = np.zeros(self._shape, np.float32)
        return start if self._unary is None else self._mean_field(0, None), scratch, scratch.copy()

    def stepInference(self, Q: FloatArray, tmp1: Any = None, tmp2: Any = None) -> None:
        """One mean-field update of `Q` `[nlabels, nvar]`, in place. `tmp1`, `tmp2` are ignored.

        Raises:
            TypeError: `Q` is not a writable floating-point NumPy array.
            ValueError: `Q` has another shape.
        """
        if not isinstance(Q, np.ndarray) or Q.dtype.kind != "f" or not Q.flags.writeable:
            raise TypeError(
                "Q must be a writable floating-point NumPy array, as startInference returns it, "
                "since it is updated in place"
            )
        Q[...] = self._mean_field(1, self._marginals(Q))

    def klDivergence(self, Q: Any) -> float:
        """sum Q log Q + sum U Q + sum_k sum Q compat_k(F_k(Q)), up to a constant KL(Q || P).

        As in pydensecrf, pairwise terms are not halved. Where Q is 0 so is U Q, even if U is inf.

        Args:
            Q: marginals `[nlabels, nvar]`.

        Raises:
            TypeError: not an array.
            ValueError: another shape.
        """
        marginals = self._marginals(Q)
        # By NumPy, as all here: in a process forked after torch had run in parallel, torch hangs.
        cost = np.log(np.maximum(marginals, np.float32(1e-20)))
        logits = self._mean_field(1, marginals, logits=True)  # -U - sum_k compat_k(F_k(Q))
        np.subtract(cost, logits, out=cost, where=marginals > np.finfo(np.float32).tiny)
        cost *= marginals
        return float(cost.sum(dtype=np.float64))

    def _add_term(
        self,
        features: FloatArray,
        compat: Any,
        kernel: int,
        normalization: int,
        divisors: Sequence[Divisor],
    ) -> None:
        """Add a term of features `[D, nvar]` in the order of the lattices.

        divisors: the arguments that they were divided by; none: the caller divided them.
        """
        compatibility = _compatibility(compat, self._nlabels)
        member("kernel", kernel, KernelType)
        side = member("normalization", normalization, NormalizationType)
        points = torch.from_numpy(features.T)
        with _naming(features, divisors):
            self._terms.append(Term.on_cpu(points, self._order, compatibility, SIDES[side]))

    def _mean_field(self, niter: int, start: FloatArray | None, logits: bool = False) -> FloatArray:
        unary = self._unary
        if unary is None:
            unary = np.zeros(self._shape, np.float32)
        found = mean_field_of_usable(
            torch.from_numpy(unary.T[None]),
            self._terms,
            niter,
            start=None if start is None else torch.from_numpy(start.T[None]),
            marginals=not logits,
        )
        return found.numpy()[0].T

    def _marginals(self, Q: Any) -> FloatArray:
        marginals = floats("Q", Q, ndims=(2,))
        if marginals.shape != self._shape:
            raise ValueError(f"Bad shape for Q (Need {self._shape}, got {marginals.shape})")
        return marginals


class DenseCRF2D(DenseCRF):
    """A fully connected CRF over the pixels of an image; variable y * w + x is pixel (x, y).

    Args:
        w: width of the image.
        h: height of the image.
        nlabels: number of labels.

    Raises:
        ValueError: a size that is not a positive integer.
    """

    def __init__(self, w: int, h: int, nlabels: int) -> None:
        self._w = integer("w", w, least=1)
        self._h = integer("h", h, least=1)
        super().__init__(self._w * self._h, nlabels)
        self._order = pixel_order(self._h, self._w)  # tiles: near pixels share lattice vertices
        self._visited: NDArray[np.int64] = self._order.numpy()

    def addPairwiseGaussian(
        self,
        sxy: Any,
        compat: Any,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a smoothness term: features (x / sx, y / sy).

        Args:
            sxy: sigma in pixels, a number or (sx, sy).
            compat, kernel, normalization: see `addPairwiseEnergy`.

        Raises:
            TypeError: `compat` is no array (a list, None), or `sxy` no number or sequence.
            ValueError: a sigma that is not positive, and as `addPairwiseEnergy`.
        """
        scales = standard_deviations("sxy", sxy, 2)
        features = np.empty((2, self._nvar), np.float32)
        self._set_positions(features, scales)
        divisors = [Divisor("sxy", sxy, scales, (self._w - 1, self._h - 1))]
        self._add_term(features, compat, kernel, normalization, divisors)

    def addPairwiseBilateral(
        self,
        sxy: Any,
        srgb: Any,
        rgbim: Any,
        compat: Any,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add an appearance term: features (x / sx, y / sy, r / sr, g / sg, b / sb).

        Args:
            sxy: sigma in pixels, a number or (sx, sy).
            srgb: sigma in grey levels 0 ... 255, a number or (sr, sg, sb).
            rgbim: uint8 `[h, w, 3]`. Not kept.
            compat, kernel, normalization: see `addPairwiseEnergy`.

        Raises:
            TypeError: `rgbim` or `compat` is no array, or a sigma no number or sequence.
            ValueError: an image of another dtype or shape, a sigma that is not positive, and as
                `addPairwiseEnergy`.
        """
        positions = standard_deviations("sxy", sxy, 2)
        colours = standard_deviations("srgb", srgb, 3)
        pixels = self._image(rgbim).reshape(-1, 3).take(self._visited, axis=0)
        features = np.empty((5, self._nvar), np.float32)
        self._set_positions(features, positions)
        features[2:] = pixels.T
        divisors = [
            Divisor("sxy", sxy, positions, (self._w - 1, self._h - 1)),
            Divisor("srgb", srgb, colours, features[2:].max(1).tolist()),
        ]
        _divide(features[2:], colours)
        self._add_term(features, compat, kernel, normalization, divisors)

    def _set_positions(self, features: FloatArray, scales: list[np.float32]) -> None:
        np.divmod(self._visited, self._w, out=(features[1], features[0]), casting="unsafe")
        _divide(features[:2], scales)

    def _image(self, rgbim: Any) -> NDArray[np.uint8]:
        image = array_of("rgbim", rgbim)
        if image.dtype != np.uint8:
            raise ValueError(
                f"rgbim must be uint8 with values 0 ... 255, not {image.dtype}; convert it on "
                "purpose: a float image may mean 0 ... 1 or 0 ... 255"
            )
        shape = (self._h, self._w, 3)
        if image.ndim == 3 and image.shape[:2] == shape[:2] and image.shape[2] != 3:
            raise ValueError(
                f"addPairwiseBilateral only works for RGB images, not {image.shape[2]} channels. "
                "For others, crf.pydensecrf.utils.create_pairwise_bilateral makes features for "
                "addPairwiseEnergy"
            )
        if image.shape != shape:
            hint = " - is it transposed?" if image.shape == (self._w, self._h, 3) else ""
            raise ValueError(
                f"Bad shape for pairwise bilateral (Need {shape}, got {image.shape}){hint}"
            )
        return image


def _divide(features: FloatArray, scales: list[np.float32]) -> None:
    with np.errstate(over="ignore"):  # a lattice refuses it, and names the sigma
        features /= np.array(scales)[:, None]


@contextmanager
def _naming(features: FloatArray, divisors: Sequence[Divisor]) -> Iterator[None]:
    """Name the arguments that features `[D, nvar]` were divided by where a lattice refuses them."""
    try:
        yield
    except UnplaceableError as error:
        found = too_small(divisors, error.limit)
        if not divisors:
            reach = float(np.abs(features).max(axis=1).sum(dtype=np.float64))
            hint = " (sdims and schan of crf.pydensecrf.utils.create_pairwise_bilateral are sigmas)"
            found = too_large("features", reach, error.limit, hint)
        raise found or error from None


def _compatibility(compat: Any, nlabels: int) -> torch.Tensor:
    """What labels pay, `[nlabels]` for a diagonal or `[nlabels, nlabels]`."""
    if isinstance(compat, Real):
        compat = np.full(nlabels, compat, np.float32) * np.float32(-1)
    compatibility = floats("compat", compat, ndims=(1, 2), copy=True)
    if set(compatibility.shape) != {nlabels}:
        shapes = f"({nlabels},) or ({nlabels}, {nlabels})"
        raise ValueError(
            f"compat must be a number or have shape {shapes}, not {compatibility.shape}"
        )
    if not np.isfinite(compatibility).all():
        raise ValueError("compat must be finite, but holds NaN or Inf")
    if compatibility.ndim == 2:
        compatibility = np.float32(0.5) * (compatibility + compatibility.T)
    return torch.from_numpy(compatibility)


def _checked_unary(energy: FloatArray) -> FloatArray:
    if not energy.size:
        raise ValueError(f"unary energies must not be empty, but have shape {energy.shape}")
    least = energy.min()
    if not least > -np.inf:  # NaN too
        raise ValueError(
            f"unary energies (-log p) must not be NaN or -inf, but the least is {least}; "
            "unary_from_softmax clips probabilities"
        )
    if energy.max() == np.inf and np.isposinf(energy).all(axis=0).any():
        raise ValueError("unary energies are +inf for all labels of a variable: none is possible")
    return energy
