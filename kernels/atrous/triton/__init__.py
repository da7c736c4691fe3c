"""Multi-rate atrous convolution in Triton: two algorithms, each with `forward` and `gradients`.

shift.py        multiply, then shift: few outputs
implicit.py     one implicit matrix product: many outputs
conv.py         the product over pixels, forward and for the gradient to the input
weight_grad.py  the product over pixels for the gradient to the weights
layout.py       how tensors lie in memory
configs.py      tile sizes, from configs/*.json

The equation is that of kernels/atrous/reference.py, its backward that of kernels/atrous/ops.py.
Sums are in float32 and in a fixed order: two runs give the same bits. Kernels launch on the current
device, which kernels/atrous/ops.py makes that of the tensors.
"""
