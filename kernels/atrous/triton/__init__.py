"""Multi-rate atrous convolution in Triton: two algorithms, each with `forward` and `gradients`.

The equation is that of kernels/atrous/reference.py, its backward that of kernels/atrous/ops.py.
Sums are in float32 and in a fixed order: two runs give the same bits. Kernels launch on the current
device, which kernels/atrous/ops.py makes that of the tensors.
"""
