"""How weights start before training.

    he            N(0, 2 / fan)        layers before a ReLU; the fan of the weight's rows or columns
    classifier    N(0, 0.01^2)         the layer that gives the scores

Biases start at 0. Sources: He et al., "Delving Deep into Rectifiers", 2015; the `weight_filler` of
the last layers in the released DeepLab prototxts.
"""

from typing import Literal, Protocol

from torch import Tensor, nn


class WeightedLayer(Protocol):
    """What has weights and biases: nn.Conv2d, MultiRateConv2d."""

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor | None: ...


def he(layer: WeightedLayer, fan: Literal["fan_in", "fan_out"]) -> None:
    """Gaussian weights whose variance keeps that of the signal (fan_in) or the gradient."""
    # A tensor on "meta" has no values to draw, and normal_ there imports a second's worth of torch.
    if not layer.weight.is_meta:
        nn.init.kaiming_normal_(layer.weight, mode=fan, nonlinearity="relu")
    _zero_bias(layer)


def classifier(layer: WeightedLayer) -> None:
    """Small Gaussian weights, so that the first scores are nearly equal."""
    if not layer.weight.is_meta:
        nn.init.normal_(layer.weight, std=0.01)
    _zero_bias(layer)


def _zero_bias(layer: WeightedLayer) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
