"""The parameters of a DenseCRF that trains: weights, standard deviations, compatibility."""

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crf.potentials import Bilateral, Pairwise, Potential


class LearnedPotentials(nn.Module):
    """What the potentials of a CRF weigh and how far they reach, as parameters in float32.

    Attributes:
        weights: `[T]`, one a potential, of any sign.
        raw_sigmas: by "gaussian_sigma_xy", "bilateral_sigma_xy" and "bilateral_sigma_rgb", as many
            numbers as were given (one for all axes, or one an axis); softplus makes them the
            standard deviations, so that these stay positive.
        compatibility: `[C, C]`, what label a (row) pays next to label b.
    """

    def __init__(self, potentials: Sequence[Potential], compatibility: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(
            torch.tensor([float(potential.weight) for potential in potentials])
        )
        self.compatibility = nn.Parameter(compatibility.to(torch.float32, copy=True))
        self.raw_sigmas = nn.ParameterDict()
        for potential in potentials:
            for name in _sigma_names(potential):
                given = torch.tensor(getattr(potential, name), dtype=torch.float64).reshape(-1)
                raw = given + torch.log(-torch.expm1(-given))  # the inverse of softplus
                self.raw_sigmas[_key(potential, name)] = nn.Parameter(raw.float())

    def sigmas(self, potential: Potential) -> Tensor:
        """The standard deviations of a potential's features, differentiable: `[2]` or `[5]`."""
        axes = {"sigma_xy": 2, "sigma_rgb": 3}
        return torch.cat(
            [
                F.softplus(self.raw_sigmas[_key(potential, name)]).expand(axes[name])
                for name in _sigma_names(potential)
            ]
        )

    def current(self, potential: Potential, index: int) -> Potential:
        """`potential`, the one of that index, with the numbers learned so far."""
        changed: dict[str, float | tuple[float, ...]] = {
            "weight": float(self.weights[index].detach())
        }
        for name in _sigma_names(potential):
            sigmas = F.softplus(self.raw_sigmas[_key(potential, name)].detach().double()).tolist()
            changed[name] = sigmas[0] if len(sigmas) == 1 else tuple(sigmas)
        return dataclasses.replace(potential, **changed)  # type: ignore[arg-type]


def _sigma_names(potential: Potential) -> tuple[str, ...]:
    if isinstance(potential, Pairwise):  # its features come divided already
        return ()
    return ("sigma_xy", "sigma_rgb") if isinstance(potential, Bilateral) else ("sigma_xy",)


def _key(potential: Potential, name: str) -> str:
    return f"{type(potential).__name__.lower()}_{name}"
