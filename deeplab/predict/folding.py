"""A copy of a network that computes the same faster on a CPU: constants folded, channels last.

    norm(w * x + b) = (s w) * x + (s (b - mean) + beta),      s = gamma / sqrt(variance + eps)

Which convolution a batch normalisation follows is seen, not read from names: a small picture goes
through the network, and a pair is folded where the normalisation takes all that the convolution
gives, nothing else takes it, and its statistics are the constants of evaluation.

Convolutions run in oneDNN, over maps whose channels lie together. PyTorch leaves those of one
pixel to a plain product where it has one thread, as with a picture a core, which is slower and
copies the map before. docs/figures.md has what all this makes of the time of a picture.
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from deeplab.errors import InputError
from deeplab.model import DeepLab
from deeplab.model.batch_norm import FrozenBatchNorm2d

BATCH_NORM = inspect.signature(F.batch_norm)
SIDE = 32  # pixels of the picture that is watched: encoders that want a multiple of 32 take it


class FoldedNetwork:
    """The scores of a model, from a folded copy of it: made when first asked for, and again
    whenever the model has changed since: its weights, options or modules.

    It can be pickled, without the copy.

    Args:
        model: in any mode, on a CPU.
        compiles: the copy by `torch.compile`, its weights as constants and sizes left open: code
            for one size would be made anew for each, and for the ninth no more.
    """

    def __init__(self, model: DeepLab, compiles: bool = False) -> None:
        self.model = model
        self.compiles = compiles
        self._lock = Lock()  # of several threads the first makes the copy
        self._copy: DeepLab | None = None
        self._state: object = None

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "compiles": self.compiles}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def current(self) -> Callable[[Tensor], Tensor] | None:
        """What gives `model(x, upsample=False)` `[B, C, h, w]` of the model as it is now, in
        evaluation mode, without a CRF layer; None where no copy does what the model does.

        What is given raises InputError where it is to be compiled and cannot be.
        """
        return partial(self._scores, self._network()) if can_be_copied(self.model) else None

    def _scores(self, network: DeepLab, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        scores: Tensor = _compiled(network, x) if self.compiles else network(x, upsample=False)
        return scores.contiguous()

    def _network(self) -> DeepLab:
        with self._lock:
            state = _state(self.model)
            if self._copy is None or self._state != state:
                self._copy = None  # never two of them in memory
                network = folded(self.model)
                if self.compiles:
                    network.compile(dynamic=True, options={"freezing": True})
                self._copy, self._state = network, state
            return self._copy


def can_be_copied(model: nn.Module) -> bool:
    """Whether a copy does what the model does: without hooks, compiled code or another forward."""
    return not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in vars(module)
        for module in model.modules()
    )


def folded(model: DeepLab) -> DeepLab:
    """A copy in evaluation mode, without the CRF layer, that shares the tensors it does not fold.

    Its scores are those of the model up to rounding: a folded weight is rounded once more.
    """
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    shared[id(model.crf)] = None
    network = copy.deepcopy(model, shared).eval()
    modules = dict(network.named_modules(remove_duplicate=False))
    for conv, norm in folding_pairs(network):
        rest = _behind(norm)
        if rest is None:
            continue
        _fold(conv, norm)
        for name in [name for name, module in modules.items() if module is norm]:
            parent, _, last = name.rpartition(".")
            setattr(modules[parent], last, rest)
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_pointwise(module):
            module.__class__ = PointwiseConv2d
    return network


def folding_pairs(network: DeepLab) -> list[tuple[nn.Conv2d, nn.Module]]:
    """Convolutions, and the constant normalisations that alone take what they give.

    None in an encoder that does not take the small picture.
    """
    x = next(network.parameters()).new_zeros(1, network.in_channels, SIDE, SIDE)
    watch = _Watch(network)
    try:
        with torch.no_grad(), watch:
            scores = network(x, upsample=False)
    except (AssertionError, RuntimeError, ValueError):  # of encoders of one size
        return []
    watch.leaves(scores)
    return watch.pairs()


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution that oneDNN computes with one thread too."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plain = weight.dtype != torch.float32 or torch.is_autocast_enabled(input.device.type)
        if plain or torch.compiler.is_compiling() or not torch.backends.mkldnn.is_available():
            return super()._conv_forward(input, weight, bias)
        return torch.mkldnn_convolution(
            input, weight, bias, (0, 0), self.stride, (1, 1), self.groups
        )


def _compiled(network: DeepLab, x: Tensor) -> Tensor:
    from torch._dynamo.exc import BackendCompilerFailed  # imported with the compiler: seconds

    try:
        scores: Tensor = network(x, upsample=False)
    except BackendCompilerFailed as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            "compile must be left out where the network cannot be compiled; it needs a C++ "
            f"compiler, such as g++ ({reason})"
        ) from error
    return scores


class _Watch(TorchFunctionMode):
    """Who takes what convolutions give, and whose it is that normalisations take."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._convs: dict[int, nn.Conv2d] = {}  # by the id of the weight
        self._norms: dict[int, nn.Module] = {}  # by the id of the mean
        for module in network.modules():
            # Tensors that modules keep: what is computed for each call may have another's id.
            if isinstance(module, nn.Conv2d) and module._parameters.get("weight") is not None:
                self._convs[id(module.weight)] = module
            elif isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
                self._norms[id(module.running_mean)] = module
        self._given: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # kept: an id is not used again
        self._takers: dict[nn.Conv2d, set[nn.Module | None]] = defaultdict(set)
        self._sources: dict[nn.Module, set[nn.Conv2d | None]] = defaultdict(set)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        norm = conv = None
        if function is F.batch_norm:
            given = BATCH_NORM.bind(*args, **kwargs).arguments
            if not given.get("training"):
                norm = self._norms.get(id(given["running_mean"]))
            if norm is not None:
                self._sources[norm].add(self._giver(given["input"]))
        elif function is F.conv2d:
            conv = self._convs.get(id(kwargs.get("weight", args[1] if len(args) > 1 else None)))
        if isinstance(result, Tensor | tuple | list):  # what gives no tensor asks for a shape
            for leaf in tree_leaves((args, kwargs)):
                giver = self._giver(leaf)
                if giver is not None:
                    self._takers[giver].add(norm)
        if conv is not None:
            self._given[id(result)] = conv, result
        return result

    def leaves(self, scores: object) -> None:
        """What the network gives is taken by its caller."""
        for leaf in tree_leaves(scores):
            giver = self._giver(leaf)
            if giver is not None:
                self._takers[giver].add(None)

    def pairs(self) -> list[tuple[nn.Conv2d, nn.Module]]:
        return [
            (conv, norm)
            for conv, takers in self._takers.items()
            for norm in takers
            if norm is not None and len(takers) == 1 and self._sources[norm] == {conv}
        ]

    def _giver(self, value: object) -> nn.Conv2d | None:
        return self._given.get(id(value), (None, None))[0]


def _behind(norm: nn.Module) -> nn.Module | None:
    """What a module does behind its normalisation; None where that is not known."""
    if type(norm) in (nn.BatchNorm2d, FrozenBatchNorm2d):
        return nn.Identity()
    drop, act = getattr(norm, "drop", None), getattr(norm, "act", None)
    # timm's BatchNormAct2d, and what freezing makes of it
    return nn.Sequential(drop, act) if drop is not None and act is not None else None


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    wide, dtype = torch.float64, conv.weight.dtype
    scale = (norm.running_var.to(wide) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.to(wide)
    bias = -norm.running_mean.to(wide)
    if conv.bias is not None:
        bias += conv.bias.to(wide)
    bias *= scale
    if norm.bias is not None:
        bias += norm.bias.to(wide)
    weight = (conv.weight.to(wide) * scale[:, None, None, None]).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.padding == (0, 0)


def _state(model: DeepLab) -> object:
    """What differs after the model has changed.

    A tensor's version counts neither fused optimisers nor what is written through `.data`, which
    its content tells; to read the weights is little beside what the network does with them.
    """
    modules = [(id(module), getattr(module, "eps", None)) for module in model.modules()]
    tensors = [_content(t.detach()) for t in (*model.parameters(), *model.buffers())]
    return model.config, model.scales, model.resize, modules, tensors


def _content(tensor: Tensor) -> tuple[int, ...]:
    version = 0 if tensor.is_inference() else tensor._version
    bits = int(torch.hash_tensor(tensor).item()) if tensor.numel() else 0
    return tensor.data_ptr(), version, bits
