"""Define an operator that `torch.compile` and `torch.export` take whole.

`torch.library.custom_op` hides a function from Dynamo, and imports Dynamo to do so at the first
call, for over a second. On a CPU, where a first call costs little else, the function is called as
it is for as long as nobody else has imported Dynamo.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def opaque_operator(
    name: str, *, schema: str | None = None, tags: Sequence[torch.Tag] = ()
) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: the function as the operator `name`, "namespace::name".

    schema: "(Tensor a, int b) -> Tensor", where the function's own signature does not say it.

    It mutates none of its arguments. The result is what `torch.library.custom_op` returns.
    """

    def define(function: Callable[..., Any]) -> Any:
        defined = torch.library.custom_op(name, mutates_args=(), schema=schema, tags=tags)(function)

        @functools.cache
        def hidden() -> Callable[..., Any]:
            return torch.compiler.disable(function)

        @torch.library.impl(name, "cpu")
        def on_cpu(*args: Any, **kwargs: Any) -> Any:
            known = "torch._dynamo" in sys.modules
            return (hidden() if known else function)(*args, **kwargs)

        return defined

    return define


def like_first(first: Tensor, *_: Any) -> Tensor:
    """For `register_fake`: what an operator gives is contiguous, and else like its first input."""
    return first.new_empty(first.shape)
