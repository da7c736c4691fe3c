"""Matrix products in float32 on a GPU: those of `precision="ieee"`, whatever PyTorch's switch says.

PyTorch's own follow `torch.set_float32_matmul_precision`, which belongs to the whole process.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sizes import blocks

BLOCK_M, BLOCK_N, BLOCK_K = 64, 64, 16  # what compiles without spills on sm_80, sm_90 and gfx942


@triton.jit(do_not_specialize=["rows"])
def product_kernel(
    a, b, out, rows, inner, columns, stride_k, stride_n,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    line = m.to(tl.int64)[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, inner, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = (m < rows)[:, None] & (k < inner)[None, :]
        x = tl.load(a + line * inner + k[None, :], mask=inside, other=0.0)
        inside = (k < inner)[:, None] & (n < columns)
        y = tl.load(b + k[:, None] * stride_k + n * stride_n, mask=inside, other=0.0)
        acc = tl.dot(x, y, acc, input_precision="ieee")
    tl.store(out + line * columns + n, acc, mask=(m < rows)[:, None] & (n < columns))


def input_precision(precision: str) -> str:
    """Of tl.dot, where products are `precision`; it has no meaning for bfloat16."""
    return "tf32" if precision == "tf32" else "ieee"


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Set `out` `[M, N]` to `a` `[M, K]` times `b` `[K, N]`, float32; `a` and `out` contiguous.

    `out` may be bfloat16: it is rounded once. No gradient.
    """
    (rows, inner), columns = a.shape, b.shape[1]
    with torch.cuda.device_of(a):
        product_kernel[blocks(rows, BLOCK_M), blocks(columns, BLOCK_N)](
            a, b, out, rows, inner, columns, *b.stride(),
            BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K, num_warps=4,
        )  # fmt: skip
    return out
