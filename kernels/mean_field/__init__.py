"""The mean-field update of a fully connected CRF."""

from kernels.mean_field.api import mean_field
from kernels.mean_field.term import Term

__all__ = ["Term", "mean_field"]
