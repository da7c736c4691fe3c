"""Fuse the atrous pyramid of a DeepLabV3 that torchvision or segmentation_models_pytorch built.

The ASPP of both packages sends one input x through parallel branches and projects what they give:

    y = project([ branch_1(x), ..., branch_n(x) ])
    branch_i(x) = relu(BN_i(w_i *_r x))      for the branches that are 3x3 at an atrous rate r

Patched, those 3x3 convolutions are one call of `kernels.multi_rate_atrous_conv2d`, which in
evaluation applies BN and ReLU too. Every parameter and buffer stays in its place and keeps its
name. Neither package is imported: a pyramid is known by the class that defines its forward, and a
branch that may be fused by its structure.

Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017,
figure 5.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kernels import dispatch, validate
from kernels.atrous import multi_rate_atrous_conv2d

_PACKAGES = ("torchvision", "segmentation_models_pytorch")
_LOOKED_FOR = (
    "ASPP of torchvision (torchvision.models.segmentation.deeplabv3) or of "
    "segmentation_models_pytorch (its DeepLabV3 and DeepLabV3Plus), with that class's own forward"
)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def patch(model: nn.Module, impl: str = "auto") -> int:
    """Run the 3x3 branches of every atrous pyramid in the model as one fused convolution.

        model = torchvision.models.segmentation.deeplabv3_resnet101(weights="DEFAULT").eval()
        deeplab.patch.patch(model)                # 1: one pyramid
        with torch.inference_mode():
            scores = model(images)["out"]         # as before, up to rounding
        model.load_state_dict(checkpoint)         # names and parameters are as before
        deeplab.patch.unpatch(model)              # the original forward again

    In evaluation BatchNorm and ReLU are part of that call. Only the convolutions are, and then each
    branch's own modules run on its channels, where one normalises with batch statistics, by a
    module other than nn.BatchNorm2d and nn.SyncBatchNorm, or has hooks after the convolution; and
    in half precision unless gradients are off. A branch that is hooked itself, or whose convolution
    is hooked or exchanged for one of another kind, is called as a module.

    Patching again is harmless and sets `impl` anew. Copies and pickles of the model stay patched.
    Programs that read forward's source (torch.jit.script, torch.fx.symbolic_trace) want the
    original: unpatch first.

    Args:
        model: holds the pyramids, or is one. Its dtype, device and mode may change afterwards.
        impl: of `multi_rate_atrous_conv2d`, at every call.

    Returns:
        How many pyramids the model has, all of them patched now.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: no pyramid in the model, one that cannot be fused (its branches are depthwise
            separable, as DeepLabV3+ of segmentation_models_pytorch has them by default), or an
            unknown `impl`. The model is then as it was.
    """
    _check_model(model)
    # By name only: whether it runs is for each call to say, the model may be moved before.
    names = ["auto", *(implementation.name for implementation in dispatch.OPERATIONS["atrous"])]
    validate.check_option("impl", impl, names)
    pyramids = {name: module for name, module in model.named_modules() if _is_pyramid(module)}
    if not pyramids:
        raise ValueError(f"no atrous pyramid in {type(model).__name__}: looked for {_LOOKED_FOR}")
    for name, module in pyramids.items():
        _check_pyramid(name, module)
    for module in pyramids.values():
        if not isinstance(module, FusedPyramid):
            original: Any = type(module)
            module.__class__ = _fused_class(original)
        module.multi_rate_impl = impl
    return len(pyramids)


def unpatch(model: nn.Module) -> int:
    """Give every patched pyramid of the model its original class, and so its forward, back.

    Returns:
        How many there were; 0 for a model that is not patched.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: something else has changed a pyramid's class since (FSDP's fully_shard, or
            torch.nn.utils.parametrize on the pyramid itself). The model is then as it was.
    """
    _check_model(model)
    patched: list[Any] = [module for module in model.modules() if isinstance(module, FusedPyramid)]
    for module in patched:
        if type(module) is not _fused_class(module.original):
            raise ValueError(
                f"a patched pyramid has become a {type(module).__name__} since: "
                "undo that first, then unpatch"
            )
    for module in patched:
        module.__class__ = module.original
        del module.multi_rate_impl
    return len(patched)


# Why the class is swapped: children, and with them state_dict keys, optimizers and hooks, are
# untouched; isinstance and the class's own methods go on working. A wrapper in the parent would
# rename keys; a `forward` set on the instance would be bound to it, and DataParallel's replicas
# compute with the first one's weights. The subclass is made when it is first needed, as the
# original is not ours to import, so `__reduce_ex__` tells pickle and deepcopy how to come by it.
class FusedPyramid(nn.Module):
    """The forward of a patched pyramid: `[B, Cin, H, W]` -> `[B, Cout, H, W]`.

    Never instantiated: a patched module's class derives from this one and from `original`.
    """

    original: type[nn.Module]
    multi_rate_impl: str
    convs: nn.ModuleList
    project: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        # Branches are looked at anew at each call: after the patch they may be exchanged
        # (SyncBatchNorm), frozen, parametrised, hooked.
        fused = _fusable(self.convs)
        outputs = _run_fused(x, list(fused.values()), self.multi_rate_impl)
        of = dict(zip(fused, outputs, strict=True))
        pieces = [of[i] if i in of else branch(x) for i, branch in enumerate(self.convs)]
        return self.project(torch.cat(pieces, dim=1))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self.original,), *super().__reduce_ex__(protocol)[2:]


@functools.cache  # one class for each original, so that copies of a module have the same type
def _fused_class(original: type[nn.Module]) -> type[nn.Module]:
    about = {"original": original, "__module__": __name__, "__doc__": FusedPyramid.__doc__}
    return type(f"Fused{original.__name__}", (FusedPyramid, original), about)


def _blank(original: Any) -> nn.Module:
    """A patched module without its state, which pickle and deepcopy set next."""
    fused = _fused_class(original)
    return fused.__new__(fused)


def _run_fused(x: Tensor, branches: Sequence[Any], impl: str) -> list[Tensor]:
    """What each branch gives, `[B, Cout, H, W]`, all convolutions in one call."""
    if not branches:
        return []
    convs = [branch[0] for branch in branches]
    tails = [list(branch)[1:] for branch in branches]
    fold = _may_fold(x) and all(_is_foldable(tail) for tail in tails)
    scale, shift = _fold([tail[0] for tail in tails], convs[0].weight) if fold else (None, None)
    joint = multi_rate_atrous_conv2d(
        x,
        _stacked([conv.weight for conv in convs], x.is_cuda),
        _biases(convs),
        rates=[conv.dilation[0] for conv in convs],
        fuse="concat",
        scale=scale,
        shift=shift,
        activation="relu" if fold else None,
        impl=impl,
    )
    width = convs[0].out_channels
    outputs = [joint.narrow(1, i * width, width) for i in range(len(branches))]
    if fold:
        return outputs
    # Dense copies: over strides BatchNorm sums in another order, and slower.
    return [nn.Sequential(*tail)(z.clone()) for tail, z in zip(tails, outputs, strict=True)]


def _stacked(weights: Sequence[Tensor], on_gpu: bool) -> Tensor:
    """`[R, Cout, Cin, k, k]`; on a GPU Cin is contiguous, as the Triton kernels read it."""
    if not on_gpu:
        return torch.stack(list(weights))
    last = torch.stack([weight.permute(0, 2, 3, 1) for weight in weights])
    return last.permute(0, 1, 4, 2, 3)


def _biases(convs: Sequence[nn.Conv2d]) -> Tensor | None:
    """`[R, Cout]`, zero for a convolution without; None where all are (so the packages build them,
    but a BatchNorm that was merged into its convolution leaves a bias)."""
    if all(conv.bias is None for conv in convs):
        return None
    zero = convs[0].weight.new_zeros(convs[0].out_channels)
    return torch.stack([zero if conv.bias is None else conv.bias for conv in convs])


def _fold(norms: Sequence[Any], weight: Tensor) -> tuple[Tensor, Tensor]:
    """scale and shift, `[R*Cout]` in weight's dtype: BN(z) = scale * z + shift in evaluation."""
    scales, shifts = [], []
    for norm in norms:
        # Wide, so that a half-precision model rounds only the result.
        wide = torch.promote_types(norm.running_var.dtype, torch.float32)
        scale = torch.rsqrt(norm.running_var.to(wide) + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight.to(wide)
        shift = -norm.running_mean.to(wide) * scale
        shifts.append(shift if norm.bias is None else shift + norm.bias.to(wide))
        scales.append(scale)
    return torch.cat(scales).to(weight.dtype), torch.cat(shifts).to(weight.dtype)


def _is_pyramid(module: nn.Module) -> bool:
    """Whether one of the packages wrote its forward, or it is patched."""
    owner = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
    known = owner.__name__ == "ASPP" and owner.__module__.split(".")[0] in _PACKAGES
    return known or owner is FusedPyramid


def _fusable(convs: nn.ModuleList) -> dict[int, Any]:
    """By position, the branches that can be one call; fewer than two are left to themselves."""
    branches: list[Any] = list(convs)
    fusable: dict[int, Any] = {}
    shape = None
    for i, branch in enumerate(branches):
        if not _is_atrous(branch) or _has_hooks(branch) or _has_hooks(branch[0]):
            continue
        shape = branch[0].weight.shape if shape is None else shape
        if branch[0].weight.shape == shape:  # else one tensor cannot hold the weights
            fusable[i] = branch
    return fusable if len(fusable) > 1 else {}


def _is_atrous(branch: Any) -> bool:
    """Whether it is a Sequential that begins with a dense 3x3 convolution that keeps the size."""
    if not (_runs_as(branch, nn.Sequential) and len(branch) and _runs_as(branch[0], nn.Conv2d)):
        return False
    conv = branch[0]
    return (
        type(conv)._conv_forward is nn.Conv2d._conv_forward
        and conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.dilation[0] == conv.dilation[1]
        and conv.padding in (conv.dilation, "same")
        and conv.padding_mode == "zeros"
        and conv.groups == 1
    )


def _may_fold(x: Tensor) -> bool:
    """Not in half precision where gradients are recorded.

    scale and shift rounded to half keep the output within its error, but turn other pixels negative
    than BatchNorm does: their ReLU passes no gradient, and the sums over pixels drift.
    """
    if not torch.is_grad_enabled():
        return True
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    cast = autocast and x.dtype != torch.float64
    return (torch.get_autocast_dtype(device) if cast else x.dtype).itemsize >= 4


def _is_foldable(tail: Sequence[Any]) -> bool:
    """Whether it is BatchNorm on running statistics, then ReLU, and nobody watches either."""
    if len(tail) != 2 or any(_has_hooks(module) for module in tail):
        return False
    norm, relu = tail
    return (
        _runs_as(norm, nn.BatchNorm2d, nn.SyncBatchNorm)
        and not norm.training
        and norm.running_mean is not None
        and norm.running_var is not None
        and _runs_as(relu, nn.ReLU)
    )


def _runs_as(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether it is of one of the kinds, its forward not overridden by a class or an instance."""
    return "forward" not in vars(module) and any(
        isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds
    )


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, kind) for kind in _HOOKS)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")


def _check_pyramid(name: str, module: Any) -> None:
    where = f"the atrous pyramid {name!r}" if name else "the atrous pyramid"
    if "forward" in vars(module):
        raise ValueError(
            f"{where} has a forward set on the instance, which a patch would not reach: "
            "remove it (del module.forward) first"
        )
    if any(_is_separable(branch) for branch in module.convs):
        raise ValueError(
            f"{where} has depthwise separable branches, and the fused multi-rate convolution is "
            "dense: leave this model unpatched, or build it with dense branches "
            "(segmentation_models_pytorch: decoder_aspp_separable=False)"
        )
    count = sum(_is_atrous(branch) for branch in module.convs)
    if count < 2:
        raise ValueError(
            f"{where} has {count} branches that can be fused, at least 2 are needed: nn.Sequential "
            "of a 3x3 nn.Conv2d with stride 1, groups 1 and padding equal to its dilation, then "
            "any modules"
        )


def _is_separable(branch: nn.Module) -> bool:
    convs = (module for module in branch.modules() if isinstance(module, nn.Conv2d))
    return any(conv.groups > 1 and conv.kernel_size == (3, 3) for conv in convs)
