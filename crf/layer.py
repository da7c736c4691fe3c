"""DenseCRF: the fully connected CRF as a layer, batched, differentiable, learnable.

    Q <- softmax(-U - sum_k w_k mu (F_k Q)),    U = -log softmax(logits),    Q_0 = softmax(-U)

F_k is a Gaussian filter over all pixels of an image, normalised by n = F_k(1). The terms are those
of crf/potentials.py.

Sources: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials" (2011), algorithm 1; Chen et al., "DeepLab", TPAMI 2018, section 3.3; Zheng et al.,
"Conditional Random Fields as Recurrent Neural Networks" (2015), for learning through the updates.
"""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from crf import checks
from crf.checks import Features
from crf.diagnosis import Diagnosis, diagnose
from crf.learned import LearnedPotentials
from crf.potentials import (
    Bilateral,
    Gaussian,
    Pairwise,
    Potential,
    compatibility_matrix,
    weighted_compatibility,
)
from crf.sigmas import naming_sigmas
from kernels import validate
from kernels.dispatch import Choice
from kernels.meanfield import NORMALIZATIONS, Normalization, ops
from kernels.meanfield.build import FilterSettings
from kernels.meanfield.kept import KeptTerm
from kernels.separable import TOLERANCE, TOLERANCES
from kernels.validate import PRECISIONS, Precision

Method = Literal["permutohedral", "exact", "separable", "auto"]
METHODS: tuple[Method, ...] = ("permutohedral", "exact", "separable", "auto")
SMALL = 64 * 64  # pixels: all their pairs are less work for a GPU than building a lattice
FEW_LANDMARKS = 10.0  # grey levels of sigma_rgb from which on a few hundred landmarks are enough


class DenseCRF(nn.Module):
    """Mean-field inference in a fully connected CRF, after the logits of a network.

    The defaults are those of DeepLab v2's script.

    Args:
        num_classes: C. With 1 every marginal is 1: a UserWarning says so.
        gaussian: the smoothness term, or None to leave it out.
        bilateral: the appearance term, or None to leave it out.
        pairwise: further terms, whose features come with each call.
        iterations: mean-field updates, 0 or more.
        method: how to filter.

            `"permutohedral"`: the lattice of pydensecrf, for all terms.
            `"exact"`: all pairs of pixels: the truth, in time quadratic in their number.
            `"separable"`: over landmark colours, for large sigma_rgb.
            `"auto"`: by what is at hand (`choose` and `diagnose` say which and why), the first line
            that holds:

            ======================================================  ===============
            a gradient to images, features or sigmas is wanted      exact
            normalization="none" (sums then keep a method's scale)  permutohedral
            on a GPU, an image of at most 64 x 64 pixels            exact
            on a GPU, sigma_rgb at least 10, no pairwise terms,     separable
            and the image needs no more landmarks than it allows
            otherwise                                               permutohedral
            ======================================================  ===============

            With exact and separable the smoothness term is a pass over rows and one over columns,
            whose error is less than rounding. Where gradients are wanted on a GPU, these are
            matrix products that follow torch.set_float32_matmul_precision.
        normalization: of each filter by its mass n: `"symmetric"`, 1 / sqrt(n) before and after
            (as pydensecrf); `"after"`, 1 / n (as DeepLab's own code); `"before"`; `"none"`.
        compatibility: `"potts"`, a penalty where labels differ, or a matrix mu of compatibilities
            `[C, C]`, used as it is (pydensecrf takes the mean with its transpose). A layer with a
            matrix is moved to the device of the logits, as one that learns is.
        precision: of the products of `"exact"` and `"separable"` on a GPU: `"ieee"` float32,
            `"tf32"` or `"bf16"`.
        eps: pairs that `"exact"` may leave out: at most this share of each pixel's sum of weights,
            where no gradient to features is wanted. 0 leaves none out. `precision`, `eps` and
            `tolerance` may only be given for a method that has them, or for `"auto"`.
        tolerance: of `"separable"`, as in `kernels.build_separable`.
        learnable: make parameters of the weights, the compatibility and the sigmas (`learned`),
            which then enter the state_dict; otherwise the layer has none. Weights and compatibility
            take gradients with every method, sigmas with `"exact"` only: with the others they
            are parameters that stay as they are.
        learn_sigmas: of a learnable layer, whether the sigmas train: True asks for
            `method="exact"`, False keeps them as they are with any method. None: with `"exact"`
            they train, and with another method a warning says that they do not.

    Attributes:
        kept: on a CPU, what the smoothness term of the last image rests on, for the next one of
            that size where no gradient is wanted: one lattice, of at most 2^20 pixels, in float32
            some 50 MB. `kept.clear()` gives its memory back. Copies of the layer, its state_dict
            and compiled calls know nothing of it, and changed sigmas make it anew.

    Raises:
        TypeError: a term of another type.
        ValueError: a number out of range, an unknown name, two terms of one name, `learn_sigmas`
            where they cannot be learned.

    Warns:
        UserWarning: the layer is learnable, its sigmas are not, and `learn_sigmas` is None.
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
        precision: Precision = "ieee",
        eps: float = 0.0,
        tolerance: float = TOLERANCE,
        learnable: bool = False,
        learn_sigmas: bool | None = None,
    ) -> None:
        super().__init__()
        checks.check_integer("num_classes", num_classes, least=1)
        checks.check_integer("iterations", iterations, least=0)
        validate.check_option("method", method, METHODS)
        validate.check_option("normalization", normalization, NORMALIZATIONS)
        validate.check_option("precision", precision, PRECISIONS)
        checks.check_number("eps", eps, 0.0, 0.5)
        checks.check_number("tolerance", tolerance, *TOLERANCES)
        checks.check_potentials(gaussian, bilateral, pairwise)
        _check_options(method, precision, eps, tolerance)
        if num_classes == 1:
            warnings.warn(
                "num_classes=1: with one class every marginal is 1 and the CRF decides nothing; "
                "two classes, such as background and object, are the fewest to choose between",
                stacklevel=2,
            )
        checks.check_learn_sigmas(learn_sigmas, learnable, method)
        self.num_classes = num_classes
        self.gaussian = gaussian
        self.bilateral = bilateral
        self.pairwise = tuple(pairwise)
        self.iterations = iterations
        self.method = method
        self.normalization = normalization
        self.precision = precision
        self.eps = eps
        self.tolerance = tolerance
        matrix = compatibility_matrix(compatibility, num_classes)
        self.kept = KeptTerm()
        self.register_buffer("compatibility", None if learnable else matrix, persistent=False)
        self.learned: LearnedPotentials | None = None
        if learnable:
            matrix = 1 - torch.eye(num_classes) if matrix is None else matrix
            self.learned = LearnedPotentials(self._given_potentials(), matrix)
            trains = method == "exact" if learn_sigmas is None else learn_sigmas
            self.learned.raw_sigmas.requires_grad_(trains)
            if learn_sigmas is None and not trains and len(self.learned.raw_sigmas):
                warnings.warn(
                    f"learnable=True with method={method!r} trains the weights and the "
                    'compatibility; the sigmas stay as they are: only method="exact" has gradients '
                    "to them. learn_sigmas=False says that this is meant",
                    stacklevel=2,
                )

    @property
    def potentials(self) -> list[Potential]:
        """Smoothness and appearance first, then the others, with the numbers learned so far."""
        given = self._given_potentials()
        if self.learned is None:
            return given
        return [self.learned.current(term, k) for k, term in enumerate(given)]

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        images: Tensor | Sequence[Tensor] | None = None,
        features: Features | Sequence[Features] | None = None,
        return_kl: bool = False,
        origin: tuple[int, int] | None = None,
    ) -> Any:
        """Marginals Q of every pixel.

        Args:
            logits: floating point `[B, C, H, W]`; U = -log softmax(logits). `[B, C, ...]` of any
                number of axes where all terms are of `pairwise`. A list of `[C, H, W]` for images
                of different sizes; images and features are lists then.
            images: RGB `[B, 3, H, W]`, values 0-255, uint8 or floating point. Images of a batch do
                not mix. None where there is no bilateral term.
            features: `[B, N, D]`, or `[1, N, D]` for all images, by the name of each term of
                `pairwise`, already divided by sigma; N runs over pixels y * W + x
                (`crf.grid_features` makes some).
            return_kl: whether to return the divergence of Q from the model too.
            origin: (y, x) of the first pixel where the images are parts of a larger one; None:
                zeros. With it a lattice has its vertices where that of the whole image has them,
                so that a part differs from the whole near its edges alone.

        Returns:
            Marginals of the shape of the logits, float64 for float64 logits and else float32, under
            autocast too; differentiable in the logits, with `method="exact"` also in images and
            features. The backward keeps or computes again Q of every update: its memory grows with
            iterations * B * C * H * W.
            With `return_kl` a pair of them and the divergence, float64 `[iterations + 1, B]`: for
            the start and after each update, up to a constant, sum Q log Q + sum U Q +
            sum_k sum Q E_k(Q), pairwise energies E_k counted twice and, for Potts, as -w F(Q):
            pydensecrf's klDivergence.
            For lists, a list of these.

            `torch.compile(fullgraph=True)` takes the call whole, except with `return_kl`. On a GPU
            the host waits once to check the arguments and once for the lattices, which as many
            images of a batch share as fit. A process that was forked after torch had
            computed in parallel calls torch.set_num_threads(1) first, as data loaders do: with more
            threads torch itself hangs there.

        Raises:
            TypeError: a dtype that does not fit.
            ValueError: shapes or devices that do not fit, images out of 0-255, NaN or Inf, missing
                or unknown features, an image that needs more landmarks than `"separable"` allows,
                or a gradient to images, features or sigmas, which only `"exact"` has. A compiled
                call looks at logits, but not at images and features.
        """
        checks.refuse_tracing()
        if not isinstance(logits, Tensor):
            return [
                _of_one(self(*one, return_kl, origin))
                for one in checks.ragged(logits, images, features)
            ]
        features = cast(Features, features or {})
        images = cast(Tensor | None, images)
        checks.check_inputs(logits, images, features, self.num_classes, self._given_potentials())
        if not return_kl:
            return self._infer(logits, images, features, marginals=True, origin=origin)
        with torch.autocast(logits.device.type, enabled=False):
            unary, points, compatibilities = self._energies(logits, images, features, origin)
            settings = self._settings(logits, points, marginals=True)
            with naming_sigmas(lambda: self.potentials, logits, images, points):
                marginals, divergence = ops.infer_with_divergence(
                    unary, points, compatibilities, settings
                )
            return marginals.reshape(logits.shape), divergence

    def refine_logits(
        self,
        logits: Tensor | Sequence[Tensor],
        images: Tensor | Sequence[Tensor] | None = None,
        features: Features | Sequence[Features] | None = None,
    ) -> Any:
        """Logits of the refined segmentation, `[B, C, H, W]`: their softmax are the marginals.

        What a loss wants; without iterations they are log softmax(logits). Arguments and errors as
        of `forward`.
        """
        checks.refuse_tracing()
        if not isinstance(logits, Tensor):
            return [self.refine_logits(*one)[0] for one in checks.ragged(logits, images, features)]
        features = cast(Features, features or {})
        images = cast(Tensor | None, images)
        checks.check_inputs(logits, images, features, self.num_classes, self._given_potentials())
        return self._infer(logits, images, features, marginals=False)

    def choose(
        self,
        device: torch.device | str,
        pixels: int | None = None,
        needs_feature_gradient: bool = False,
    ) -> Choice:
        """The method of a call on `device`, and why; for `"auto"` by the table of the class.

        pixels: of one image; None: many.
        needs_feature_gradient: a gradient to images, features or sigmas is wanted.
        """
        if self.method != "auto":
            return Choice(self.method, "asked for")
        if needs_feature_gradient:
            return Choice("exact", "auto: only it has gradients to images, features and sigmas")
        if self.normalization == "none":
            return Choice("permutohedral", "auto: unnormalised sums are meant as pydensecrf's")
        if torch.device(device).type != "cuda":
            return Choice("permutohedral", "auto: the fastest on this device")
        if pixels is not None and pixels <= SMALL:
            return Choice("exact", f"auto: all pairs of at most {SMALL} pixels are soon done")
        narrow = self.bilateral is not None and min(self.bilateral.sigmas[2:]) < FEW_LANDMARKS
        if self.pairwise or narrow:
            return Choice(
                "permutohedral",
                f"auto: a sigma_rgb below {FEW_LANDMARKS:g} or pairwise terms need many landmarks",
            )
        return Choice("separable", "auto: few landmarks, unless the image needs too many")

    def diagnose(
        self,
        logits: Tensor | Sequence[Tensor],
        images: Tensor | Sequence[Tensor] | None = None,
        features: Features | Sequence[Features] | None = None,
    ) -> Diagnosis:
        """Which filter a call with these arguments runs for each image and pairwise term, and why.

        With how large each is (vertices, share of pairs kept, landmarks) and how accurate (what
        a sum may miss at most, what landmarks miss on average). It builds the filters and runs
        none. Of the logits only shape, dtype and device count.

        Returns:
            A list of `crf.diagnosis.TermDiagnosis`, image after image; printed, a table.

        Raises:
            TypeError, ValueError: as of `forward`.
        """
        if not isinstance(logits, Tensor):
            alone = [self.diagnose(*one) for one in checks.ragged(logits, images, features)]
            return Diagnosis(
                dataclasses.replace(term, image=b)
                for b, found in enumerate(alone)
                for term in found
            )
        features = cast(Features, features or {})
        images = cast(Tensor | None, images)
        checks.check_inputs(logits, images, features, self.num_classes, self._given_potentials())
        with torch.autocast(logits.device.type, enabled=False):
            _, points, _ = self._energies(logits, images, features)
            settings = self._settings(logits, points, marginals=True)
            pixels = math.prod(logits.shape[2:])
            reason = self.choose(logits.device, pixels, _wants_gradient(points)).reason
            names = [
                term.name if isinstance(term, Pairwise) else type(term).__name__.lower()
                for term in self._given_potentials()
            ]
            with naming_sigmas(lambda: self.potentials, logits, images, points):
                return diagnose(points, names, len(logits), settings, reason)

    def __prepare_scriptable__(self) -> None:
        """What torch.jit.script asks a module for first."""
        raise RuntimeError(checks.NO_TORCHSCRIPT.format("script"))

    def extra_repr(self) -> str:
        terms = [f"gaussian={self.gaussian}", f"bilateral={self.bilateral}"]
        if self.pairwise:
            terms.append(f"pairwise={self.pairwise}")
        compatibility = "'potts'" if self.compatibility is None else "matrix"
        if self.learned is not None:
            compatibility = "learned"
        return (
            f"num_classes={self.num_classes}, {', '.join(terms)}, iterations={self.iterations}, "
            f"method={self.method!r}, normalization={self.normalization!r}, "
            f"compatibility={compatibility}"
        )

    def _given_potentials(self) -> list[Potential]:
        return [term for term in (self.gaussian, self.bilateral, *self.pairwise) if term]

    def _infer(
        self,
        logits: Tensor,
        images: Tensor | None,
        features: Features,
        marginals: bool,
        origin: tuple[int, int] | None = None,
    ) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            unary, points, compatibilities = self._energies(logits, images, features, origin)
            settings = self._settings(logits, points, marginals)
            if not torch.compiler.is_compiling():
                with naming_sigmas(lambda: self.potentials, logits, images, points):
                    found = ops.infer(unary, points, compatibilities, settings, self.kept)
            elif _wants_gradient(points):
                found = ops.infer(unary, points, compatibilities, settings)
            else:
                numbers = vars(settings).values()
                found = ops.mean_field_operator(unary, points, compatibilities, *numbers)
            return found.reshape(logits.shape)

    def _settings(
        self, logits: Tensor, points: Sequence[Tensor], marginals: bool
    ) -> FilterSettings:
        """What a call runs with: the method for these features, and all that it needs to know."""
        needs = _wants_gradient(points)
        method = self.choose(logits.device, math.prod(logits.shape[2:]), needs).impl
        if needs and method != "exact":
            raise ValueError(
                f'method="{method}" has no gradient to images, features or sigmas: use '
                'method="exact", or detach them'
            )
        if method != self.method and method == "separable":
            method = "auto"  # it depends on the image
        return FilterSettings(
            method=method,
            normalization=self.normalization,
            iterations=self.iterations,
            precision=self.precision,
            eps=self.eps,
            tolerance=self.tolerance,
            width=logits.shape[3] if logits.ndim == 4 else 0,
            has_gaussian=self.gaussian is not None,
            spatial_dims=logits.ndim - 2,
            marginals=marginals,
        )

    def _energies(
        self,
        logits: Tensor,
        images: Tensor | None,
        features: Features,
        origin: tuple[int, int] | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Unary energies `[B, C, N]`; features and compatibility of each term, in their order."""
        matrix = self.compatibility if self.learned is None else self.learned.compatibility
        if matrix is not None:  # to copy it would wait for the device, for each term of each call
            mend = f"; move the layer there: layer.to({str(logits.device)!r})"
            checks.check_device("the layer's compatibility", matrix, logits, mend)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        unary = -logits.to(dtype).log_softmax(1).flatten(2)
        points, compatibilities = [], []
        for k, term in enumerate(self._given_potentials()):
            if isinstance(term, Pairwise):
                points.append(features[term.name].to(dtype))
            else:
                sigmas = None if self.learned is None else self.learned.sigmas(term).to(dtype)
                maps = logits if isinstance(term, Gaussian) else images
                assert maps is not None  # a bilateral term without images was refused
                points.append(term.features(maps.to(dtype), sigmas, origin))
            if self.learned is None:
                compatibilities.append(
                    weighted_compatibility(term.weight, self.compatibility, like=unary)
                )
            else:
                compatibilities.append(
                    (self.learned.weights[k] * self.learned.compatibility).to(dtype)
                )
        return unary, points, compatibilities


def _check_options(method: Method, precision: Precision, eps: float, tolerance: float) -> None:
    """Refuse what the method does not have: ignored, it would pass for what was asked."""
    given = {
        "precision": (precision != "ieee", ("exact", "separable", "auto")),
        "eps": (eps != 0, ("exact", "auto")),
        "tolerance": (tolerance != TOLERANCE, ("separable", "auto")),
    }
    for name, (changed, methods) in given.items():
        if changed and method not in methods:
            raise ValueError(
                f"{name} is an option of method={methods[0]!r}, not of {method!r}; leave it out"
            )


def _wants_gradient(points: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(p.requires_grad for p in points)


def _of_one(result: Any) -> Any:
    """The result of a batch of one image without the batch."""
    if isinstance(result, Tensor):
        return result[0]
    marginals, divergence = result
    return marginals[0], divergence[:, 0]
