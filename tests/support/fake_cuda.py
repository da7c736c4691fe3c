"""A GPU that is not there: what host code launches and waits for, without a GPU.

Host code runs on fake tensors: they have a device, a shape, a dtype and strides, and no memory.

    a Triton kernel    is not launched: its grid and its arguments are checked, the launch counted
    an operator        of our own runs its body, and gives what its fake promises
    an ATen operator   gives what PyTorch's fake tensors give, and is counted
    a value            that the host reads is a wait, counted; `answers` have a plausible one

The tensors are on a device that is not the current one: a launch outside a device guard and a
tensor made on whatever device is current are both in the wrong place. What is wrong raises `Fault`
where it is done.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# One that no machine has: what our code keeps of a device, it keeps by its index.
DEVICE = torch.device("cuda", 99)
META = torch.device("meta")
CURRENT = 0  # where nothing makes DEVICE the current one
MOST_PROGRAMS = (2**31 - 1, 2**16 - 1, 2**16 - 1)  # of a grid, by axis
PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132
)
FREE, TOTAL = 70 * 2**30, 80 * 2**30  # bytes

aten = torch.ops.aten
ALLOCATIONS = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
RENAMINGS = {aten._unsafe_view.default}  # views that their schemas do not tell as such
COPIES = {aten._to_copy.default, aten.copy_.default}

Answers = Mapping[str, Callable[[Tensor], Any]]
Case = Callable[[], Callable[[], None]]


class Fault(AssertionError):
    """Host code did what a GPU would refuse, or what would be wrong on a machine with several."""


@dataclass
class Counts:
    """What one run of some host code did.

    Attributes:
        triton: launches by the name of the kernel.
        aten: calls that compute on the device by the name of the operator; each is a launch or
            more.
        waits: how often the host waited for the device: values read, and copies between devices.
    """

    triton: Counter[str] = field(default_factory=Counter)
    aten: Counter[str] = field(default_factory=Counter)
    waits: int = 0


def counts_of(case: Case, answers: Answers) -> Counts:
    """What the function that `case` gives does; `case` itself makes what it is run on."""
    with fake_gpu(answers) as gpu:
        with DEVICE:
            run = case()
        gpu.counts = Counts()
        run()
    return gpu.counts


@contextlib.contextmanager
def fake_gpu(answers: Answers) -> Iterator[GPU]:
    """Host code on tensors of DEVICE; what it does is in the `counts` of what is given.

    answers: by the qualified name of the function that reads a tensor of the device, with
        `tolist`, `item` or as a number: what it reads. Flags need none: what is checked is well.
    """
    # Imported here: Triton decides at its import whether it interprets.
    from triton.runtime.jit import JITFunction

    gpu = GPU(answers)
    with contextlib.ExitStack() as stack:
        for target, name, fake in (
            (JITFunction, "run", lambda kernel, *args, **kw: gpu.launch(kernel, *args, **kw)),
            (torch.cuda, "_exchange_device", gpu.exchange_device),
            (torch.cuda, "_maybe_exchange_device", gpu.exchange_device),
            (torch.cuda, "current_device", lambda: gpu.current),
            (torch.cuda, "get_device_properties", _properties),
            (torch.cuda, "mem_get_info", lambda device: (FREE, TOTAL)),
            (torch.cuda, "memory_reserved", lambda device: 0),
            (torch.cuda, "memory_allocated", lambda device: 0),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        ):
            stack.enter_context(mock.patch.object(target, name, fake))
        for name, fake in _tensor_methods(gpu).items():
            stack.enter_context(mock.patch.object(FakeTensor, name, fake, create=True))
        stack.enter_context(_NoGPU())
        stack.enter_context(gpu)
        yield gpu


def tensor(*shape: int, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor:
    """A tensor of DEVICE, under `fake_gpu`; options as of torch.empty."""
    return torch.empty(shape, dtype=dtype, device=DEVICE, **options)


def description(tensor: Tensor) -> str:
    """All that a tensor without memory has."""
    shape, strides = list(tensor.shape), list(tensor.stride())
    return f"{tensor.dtype} {shape} strides {strides} on {_device(tensor)}"


class _NoGPU(FakeTensorMode):
    """As on a machine without a GPU, on any: none is initialised.

    C++ is told that the tensors are on "meta": for a CUDA device it has no code in a build without,
    and what it does for a tensor without memory is the same. What it then makes there is of DEVICE.
    """

    avoid_device_init = True

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if operator is torch.ops.prim.device.default:
            return META
        return super().__torch_dispatch__(operator, types, args, _placed(kwargs))


class GPU(TorchDispatchMode):
    """Sees every operator below autograd, and every launch."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers
        self.counts = Counts()
        self.current = CURRENT

    def exchange_device(self, index: int) -> int:
        """Make the device current, if it is one, and say which was."""
        before = self.current
        if index >= 0:
            self.current = index
        return before

    # Operators

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = _placed(kwargs)
        if operator is torch.ops.prim.device.default:
            return META
        if operator.namespace == "kernels":
            return self._run_operator(operator, args, kwargs)
        if operator is aten._local_scalar_dense.default and not _on_cpu(args[0]):
            return self.read(args[0])
        if operator is aten._unique2.default:
            return self._unique(args[0])
        if operator is aten._to_copy.default and _changes_nothing(*args, **kwargs):
            return args[0]
        if _is_composite(operator):  # inside our operators PyTorch has not taken it apart
            with self:
                return operator.decompose(*args, **kwargs)
        result = operator(*args, **kwargs)
        self._count(operator, args, kwargs, result)
        return result

    def _run_operator(self, operator: Any, args: Any, kwargs: Any) -> Any:
        """The body of one of our operators, which has to give what its fake promises."""
        with self:
            found = OPDEFS[operator._schema.name]._init_fn(*args, **kwargs)
        promised = operator(*args, **kwargs)
        for one, other in zip(_tensors(found), _tensors(promised), strict=True):
            if description(one) != description(other):
                raise Fault(
                    f"{operator} gives {description(one)}, its fake promises {description(other)}"
                )
        return found

    def _count(self, operator: Any, args: Any, kwargs: Any, result: Any) -> None:
        given, made = _tensors((args, kwargs)), _tensors(result)
        placed = [t for t in given + made if t.fake_device == DEVICE]
        strays = [t for t in given + made if t.fake_device != DEVICE and not _is_number(t)]
        if operator in COPIES and placed and strays:
            self.counts.waits += not (kwargs.get("non_blocking") or args[2:] == (True,))
        elif strays and not (operator is aten.lift_fresh.default and _on_cpu(*strays)):
            raise Fault(f"{operator} has a tensor on {strays[0].fake_device}, not on {DEVICE}")
        computes = not operator.is_view and operator not in ALLOCATIONS | RENAMINGS
        if computes and any(t.fake_device == DEVICE and t.numel() for t in made):
            self.counts.aten[operator._opname] += 1

    # Values

    def read(self, values: Tensor) -> Any:
        """What the host reads of a tensor of the device, for which it waits."""
        self.counts.waits += 1
        if values.dtype == torch.bool and not values.dim():
            return True
        who = _caller()
        if who not in self.answers:
            raise Fault(
                f"{who} reads {description(values)} from the GPU: give it a plausible answer"
            )
        return self.answers[who](values)

    def _unique(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct values, whose number is read; the places and counts that nobody asked for."""
        self.counts.aten["_unique2"] += 1
        distinct = torch.empty(self.read(values), dtype=values.dtype, device=DEVICE)
        nothing = torch.empty(0, dtype=torch.int64, device=DEVICE)
        return distinct, nothing, nothing

    # Launches

    def launch(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """In place of `JITFunction.run`."""
        name = _name(kernel)
        arguments, options = _arguments(kernel, args, kwargs)
        if callable(grid):
            grid = grid(arguments)
        _check_grid(name, grid if isinstance(grid, tuple) else (grid,))
        warps = options.get("num_warps", 4)
        if warps not in (1, 2, 4, 8, 16, 32):
            raise Fault(f"{name}: num_warps must be a power of two from 1 to 32, not {warps}")
        for argument, values in arguments.items():
            for value in tree_leaves(values):
                _check_argument(f"{name}: {argument}", value)
        if self.current != DEVICE.index:
            raise Fault(f"{name} is launched on cuda:{self.current}, its tensors are on {DEVICE}")
        self.counts.triton[name] += 1


def _tensor_methods(gpu: GPU) -> dict[str, Any]:
    """What C++ answers for a tensor by looking at its device or its memory."""

    def reads(name: str, kind: Callable[[Any], Any] = lambda value: value) -> Any:
        plain = getattr(FakeTensor, name)

        def method(self: FakeTensor) -> Any:
            return kind(gpu.read(self)) if self.fake_device == DEVICE else plain(self)

        return method

    plain_set = FakeTensor.__setitem__

    def set_item(self: FakeTensor, index: Any, value: Any) -> None:
        if isinstance(value, Tensor) or any(isinstance(i, Tensor) for i in tree_leaves(index)):
            plain_set(self, index, value)
        else:
            self[index].fill_(value)  # as C++ does on a GPU

    return {
        "is_cuda": property(lambda self: self.fake_device.type == "cuda"),
        "get_device": lambda self: -1 if _on_cpu(self) else self.fake_device.index,
        "__setitem__": set_item,
        "tolist": reads("tolist"),
        "item": reads("item"),
        "__bool__": reads("__bool__", bool),
        "__int__": reads("__int__", int),
        "__float__": reads("__float__", float),
        "__index__": reads("__index__", int),
    }


def _placed(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Arguments of an operator, what C++ hands on of the tensors' device put right."""
    kwargs = kwargs or {}
    return {**kwargs, "device": DEVICE} if kwargs.get("device") == META else kwargs


def _name(kernel: Any) -> str:
    """Such as "atrous.conv_kernel": two operations have kernels of one name."""
    package, _, module = kernel.fn.__module__.partition(".")
    operation = f"{module.partition('.')[0]}." if package == "kernels" else ""
    return f"{operation}{kernel.__name__}"


def _arguments(kernel: Any, args: Any, kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a launch by name, and the compiler's options."""
    from triton.backends.nvidia.compiler import CUDAOptions

    named = {name: value for name, value in kwargs.items() if name in kernel.arg_names}
    options = {name: value for name, value in kwargs.items() if name not in named}
    unknown = options.keys() - CUDAOptions.__dataclass_fields__.keys()
    if unknown:
        raise Fault(f"{_name(kernel)} has no argument {sorted(unknown)}")
    try:
        bound = inspect.signature(kernel.fn).bind(*args, **named)
    except TypeError as error:
        raise Fault(f"{_name(kernel)}: {error}") from error
    return bound.arguments, options


def _check_grid(kernel: str, grid: tuple[Any, ...]) -> None:
    if not 1 <= len(grid) <= 3:
        raise Fault(f"{kernel}: the grid must have 1 to 3 axes, not {len(grid)}")
    for axis, size, most in zip("xyz", grid, MOST_PROGRAMS, strict=False):
        if type(size) is not int or not 1 <= size <= most:
            raise Fault(f"{kernel}: the grid along {axis} must be 1 to {most}, not {size!r}")


def _check_argument(name: str, value: Any) -> None:
    value = getattr(value, "base", value)  # of a tensor descriptor
    if isinstance(value, Tensor):
        device = _device(value)
        if device != DEVICE:
            raise Fault(f"{name} is a tensor on {device}, not on {DEVICE}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise Fault(f"{name} is {value}, which takes more than 64 bits")


@functools.cache
def _is_composite(operator: Any) -> bool:
    """Whether it is made of other operators on every device."""
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd")
    )


def _device(tensor: Tensor) -> torch.device:
    return tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device


def _tensors(tree: Any) -> list[FakeTensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, FakeTensor)]


def _on_cpu(*tensors: FakeTensor) -> bool:
    return all(tensor.fake_device.type == "cpu" for tensor in tensors)


def _is_number(tensor: FakeTensor) -> bool:
    """Whether it goes to the device as an argument of a kernel."""
    return not tensor.dim() and _on_cpu(tensor)


def _changes_nothing(source: FakeTensor, **wanted: Any) -> bool:
    """Whether a copy is asked for only because C++ takes the tensor to be elsewhere."""
    form = wanted.get("memory_format") or torch.preserve_format
    return (
        wanted.get("device") == source.fake_device == DEVICE
        and wanted.get("dtype") in (None, source.dtype)
        and (form == torch.preserve_format or source.is_contiguous(memory_format=form))
    )


def _properties(device: Any) -> SimpleNamespace:
    if torch.device(device) != DEVICE:
        raise Fault(f"the properties of {device} are asked for, the tensors are on {DEVICE}")
    return PROPERTIES


def _caller() -> str:
    """The function of ours that called PyTorch, by its module and qualified name."""
    frame = sys._getframe(1)
    while True:
        module = frame.f_globals["__name__"]
        if module != __name__ and module.partition(".")[0] != "torch":
            return f"{module}.{frame.f_code.co_qualname}"
        assert frame.f_back is not None
        frame = frame.f_back
