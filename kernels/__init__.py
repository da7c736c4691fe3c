"""Fused atrous convolution and high-dimensional Gaussian filtering: tensors in, tensors out."""

DISTRIBUTION = "deeplab-triton"  # tells this package from others of the same import name
