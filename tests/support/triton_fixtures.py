"""Fixtures of every test of Triton kernels: NaN in new memory, a lighter interpreter, its tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernels import dispatch


@pytest.fixture(autouse=True, scope="session")
def lighter_interpreter() -> None:
    """Leave out of each step what takes half of its time and says nothing at these sizes.

    The interpreter computes every sum and product of integers again in 64 bits to assert that it
    does not overflow, which indices of some thousands cannot; makes a dictionary of all types to
    look one up; swaps the language's functions for its own at every call of a function, and back;
    and checks and wraps the shape of every value anew.
    """
    if not dispatch.interpreting():
        return
    import triton.language.core as tl
    from triton.runtime import interpreter

    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)
    interpreter._get_np_dtype = _remembered(interpreter._get_np_dtype, lambda t: str(t.scalar))

    # Once for a function and for good, in a process that does nothing but interpret.
    interpreter._patch_lang = _remembered(interpreter._patch_lang, lambda function: function)
    interpreter._LangPatchScope.restore = lambda self: None

    def plain(shape: Any) -> tuple[int, ...]:
        values = shape.values if isinstance(shape, tl.tuple) else tl._unwrap_if_constexpr(shape)
        return tuple([n.value if isinstance(n, tl.constexpr) else n for n in values])

    def checked(shape: Any) -> SimpleNamespace:
        made = SimpleNamespace()
        check(made, tl.int32, shape)
        made.wrapped = tl.tuple([tl.constexpr(n) for n in plain(shape)])
        return made

    check, shapes = tl.block_type.__init__, _remembered(checked, plain)
    scalar = SimpleNamespace(numel=1, wrapped=tl.tuple([]))

    def make_type(self: Any, element_ty: Any, shape: Any) -> None:
        known = shapes(shape)
        self.element_ty, self.shape, self.numel = element_ty, known.shape, known.numel

    def make_value(self: Any, handle: Any, type: Any) -> None:
        known = shapes(type.shape) if type.is_block() else scalar
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = tl.constexpr(known.numel), known.wrapped

    tl.block_type.__init__ = make_type
    tl.block_type.name = property(lambda self: f"<{self.shape}, {self.element_ty}>")
    tl.tensor.__init__ = make_value


def _remembered(function: Callable[[Any], Any], key: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`function` of one argument, called once for each key."""
    known: dict[Any, Any] = {}

    def look_up(argument: Any) -> Any:
        name = key(argument)
        if name not in known:
            known[name] = function(argument)
        return known[name]

    return look_up


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What a kernel forgets to write shows up: torch fills new memory with NaN."""
    # On a GPU some of PyTorch's own operators, which oracles use, have no deterministic variant.
    torch.use_deterministic_algorithms(True, warn_only=not dispatch.interpreting())
    assert torch.empty(3).isnan().all()
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def large_lattice_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few programs a launch, as the interpreter takes as long for any tile; short pieces."""
    from kernels.permutohedral.triton import (
        building,
        filtering,
        segments,  # once configured
    )

    monkeypatch.setattr(building, "SEARCH_BLOCK", 1024)
    monkeypatch.setattr(building, "PLACE_TILE", 2**11)
    monkeypatch.setattr(filtering, "SPLAT_TILE", 2**13)
    monkeypatch.setattr(filtering, "TILE", 2**13)
    monkeypatch.setattr(segments, "BLOCK", 1024)
    monkeypatch.setattr(segments, "PIECE", 16)
