"""The settings of a dense CRF as files and options have them: in TOML, beside weights, by name.

    [crf]
    iterations = 10
    gaussian_weight = 3.0           # the fields of crf.Gaussian
    bilateral_weight = 4.0          # the fields of crf.Bilateral

The metadata of weights hold the same names. The defaults are those of DeepLab v2's released script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

import crf
from deeplab import toml
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.model.preprocess import Bands

TERMS = {"gaussian": crf.Gaussian, "bilateral": crf.Bilateral}
NAMES = (
    "iterations",
    *(f"{name}_{field.name}" for name, term in TERMS.items() for field in fields(term)),
    "compatibility",
    "bands",
)
RENAMED = {"gaussian_sigma": "gaussian_sigma_xy"}  # names in files of earlier versions


@dataclass(frozen=True)
class CRFSettings:
    """What a dense CRF is made of.

    Attributes:
        iterations: mean-field updates.
        gaussian: the smoothness term, None for none.
        bilateral: the appearance term, None for none.
        compatibility: what each label (a row) pays next to each other, as a training learns it;
            None: 1 where they differ.
        bands: which bands of a picture are red, green and blue for it, from 0 on; "all": every
            band counts in the appearance term; None: the first three.

    Raises InputError for values that the CRF cannot compute with.
    """

    iterations: int = 10
    gaussian: crf.Gaussian | None = crf.Gaussian(3.0, 3.0)  # noqa: RUF009 (frozen)
    bilateral: crf.Bilateral | None = crf.Bilateral(4.0, 49.0, 5.0)  # noqa: RUF009
    compatibility: Sequence[Sequence[float]] | None = None
    bands: Bands = None

    def __post_init__(self) -> None:
        if self.bands is not None:
            object.__setattr__(self, "bands", _checked_bands(self.bands))
        count = self.iterations
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise InputError(f"CRF iterations must be an integer of 0 or more, not {count!r:.80}")
        if self.compatibility is not None:
            object.__setattr__(self, "compatibility", _square(self.compatibility))
            return  # a training may turn the sign of the weights
        for name in TERMS:
            term = getattr(self, name)
            if term is not None and term.weight < 0:
                raise InputError(f"CRF {name}_weight must be 0 or more, not {term.weight!r}")

    def changed(self, changes: Mapping[str, Any]) -> CRFSettings:
        """These settings with some of `NAMES` replaced; None stands for no change.

        Raises InputError for an unknown name, and a value that the CRF cannot compute with.
        """
        given = {name: value for name, value in renamed(changes).items() if value is not None}
        if unknown := [name for name in given if name not in NAMES]:
            raise InputError(
                f"CRF settings: unknown {', '.join(unknown)}; expected {', '.join(NAMES)}"
            )
        terms = {name: self._changed_term(name, given) for name in TERMS}
        rest = {
            name: given[name] for name in ("iterations", "compatibility", "bands") if name in given
        }
        return replace(self, **terms, **rest)

    def _changed_term(self, name: str, given: Mapping[str, Any]) -> Any:
        start = f"{name}_"
        values = {
            key.removeprefix(start): tuple(value) if isinstance(value, list) else value
            for key, value in given.items()
            if key.startswith(start)
        }
        term = getattr(self, name)
        if not values:
            return term
        try:
            return replace(term or replace(getattr(CRFSettings, name), weight=0.0), **values)
        except (TypeError, ValueError) as error:
            raise InputError(f"CRF {start}{error!s:.200}") from error

    def enlarged(self, factor: float) -> CRFSettings:
        """The same CRF for a picture `factor` times as wide and high, below 1 for a smaller one.

        Only distances on the picture change: with the default normalisation a pixel's messages
        are means, which do not depend on how many pixels there are.
        """

        def times(sigma: Any) -> Any:
            return tuple(factor * s for s in sigma) if isinstance(sigma, tuple) else factor * sigma

        terms = {name: getattr(self, name) for name in TERMS}
        return replace(
            self,
            **{
                name: term and replace(term, sigma_xy=times(term.sigma_xy))
                for name, term in terms.items()
            },
        )

    @classmethod
    def from_toml(cls, path: str | Path) -> CRFSettings:
        """The settings in the table [crf] of a file; what it leaves out is the default.

        Raises InputError: missing or unreadable file, no such table, unknown names, bad values.
        """
        try:
            stored = toml.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; check the name and the folder") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{path}: cannot be read as TOML ({reason})") from error
        if not isinstance(stored.get("crf"), dict):
            raise InputError(f"{path}: has no table [crf], as deeplab tune-crf writes it")
        try:
            return cls().changed(stored["crf"])
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    @classmethod
    def stored(cls, metadata: Mapping[str, Any], path: object = None) -> CRFSettings:
        """The settings in the metadata of weights, the default where there are none.

        path: names the weights in errors. Raises InputError as `changed` does.
        """
        stored = metadata.get("crf") or {}
        try:
            if not isinstance(stored, dict):
                raise InputError(f"must hold settings by name, not {stored!r:.80}")
            return cls().changed(stored)
        except InputError as error:
            raise InputError(f"{path or 'weights'}: its metadata: crf: {error}") from error

    @classmethod
    def of(cls, layer: crf.DenseCRF) -> CRFSettings:
        """The settings of a layer that `layer` made, with what it has learned since."""
        terms: dict[str, Any] = dict.fromkeys(TERMS)
        terms |= {type(term).__name__.lower(): term for term in layer.potentials}
        matrix = layer.learned.compatibility if layer.learned else layer.compatibility
        penalties = None if matrix is None else matrix.tolist()
        return cls(layer.iterations, **terms, compatibility=penalties)

    def as_dict(self) -> dict[str, Any]:
        """By `NAMES`, for TOML and JSON; a term of None is a weight of 0, which computes the same.

        What stands for nothing, or for the default, is left out.
        """
        plain: dict[str, Any] = {"iterations": self.iterations}
        for name in TERMS:
            term = getattr(self, name)
            values = {"weight": 0.0} if term is None else asdict(term)
            plain |= {f"{name}_{key}": value for key, value in values.items()}
        rest = {"compatibility": self.compatibility, "bands": self.bands}
        return plain | {name: value for name, value in rest.items() if value}

    def to_toml(self) -> str:
        """A TOML text with the table [crf], which `from_toml` reads."""
        import tomli_w  # only to write: a machine may have the networks without the command line

        return tomli_w.dumps({"crf": self.as_dict()})

    def refiner(self, num_classes: int) -> crf.DenseCRF | AllBandsCRF:
        """What refines logits with these settings: `layer`, or one that looks at all bands."""
        if self.bands == "all" and self.bilateral is not None:
            return AllBandsCRF(replace(self, bilateral=None), self.bilateral, num_classes)
        return self.layer(num_classes)

    def layer(
        self, num_classes: int, learnable: bool = False, pairwise: Sequence[crf.Pairwise] = ()
    ) -> crf.DenseCRF:
        """The CRF layer with these settings, on the permutohedral lattice as pydensecrf's."""
        if self.compatibility is not None and len(self.compatibility) != num_classes:
            raise InputError(
                f"CRF compatibility must be a row for each of {num_classes} classes, "
                f"not {len(self.compatibility)}"
            )
        return crf.DenseCRF(
            num_classes,
            gaussian=self.gaussian,
            bilateral=self.bilateral,
            pairwise=pairwise,
            iterations=self.iterations,
            compatibility="potts" if self.compatibility is None else self.compatibility,
            learnable=learnable,
            learn_sigmas=False if learnable else None,
        )


class AllBandsCRF(nn.Module):
    """A dense CRF whose appearance term compares pictures of any number of bands.

        w1 exp(-|p_i - p_j|^2 / (2 sigma_xy^2) - |I_i - I_j|^2 / (2 sigma_rgb^2))

    as `crf.Bilateral`, with I all bands. A lattice of more dimensions takes more time. With many
    bands distances grow, so that sigma_rgb has to.

    Raises InputError where sigma_rgb is not one number.
    """

    def __init__(self, settings: CRFSettings, appearance: crf.Bilateral, num_classes: int) -> None:
        super().__init__()
        if not isinstance(appearance.sigma_rgb, int | float):
            raise InputError(
                "CRF bilateral_sigma_rgb must be one number where bands is all, not "
                f"{appearance.sigma_rgb}"
            )
        self.appearance = appearance
        term = crf.Pairwise("bands", appearance.weight)
        self.layer = settings.layer(num_classes, pairwise=[term])

    def forward(
        self, logits: Tensor, levels: Tensor, origin: tuple[int, int] | None = None
    ) -> Tensor:
        """Marginals `[B, C, H, W]`, from levels `[B, bands, H, W]` in 0-255.

        origin: as of `crf.DenseCRF`.
        """
        xy, colour = self.appearance.sigma_xy, self.appearance.sigma_rgb
        features = crf.grid_features(levels.shape[2:], xy, levels, colour, origin)
        marginals: Tensor = self.layer(logits, features={"bands": features}, origin=origin)
        return marginals


def renamed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier version has stored, by the names of today."""
    return {RENAMED.get(name, name): value for name, value in stored.items()}


def _square(matrix: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """A compatibility matrix in plain numbers; InputError where it is none."""
    try:
        rows = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError):
        rows = np.empty(0)
    if rows.ndim != 2 or rows.shape[0] != rows.shape[1] or not rows.size:
        rows = np.full((1, 1), np.nan)
    if not np.isfinite(rows).all():
        raise InputError(
            "CRF compatibility must be a square matrix of finite numbers, one row a class, "
            f"not {matrix!r:.80}"
        )
    return tuple(map(tuple, rows.tolist()))


def _checked_bands(bands: Any) -> Bands:
    """InputError where they are neither "all" nor three numbers from 0 up."""
    if bands == "all":
        return "all"
    listed = tuple(bands) if isinstance(bands, list | tuple) else ()
    if len(listed) != 3 or not all(type(band) is int and band >= 0 for band in listed):
        raise InputError(f"CRF bands must be all, or three integers from 0 up, not {bands!r:.80}")
    return listed
