"""The mean-field update of a fully connected CRF."""

from kernels.meanfield.api import mean_field
from kernels.meanfield.term import Term

__all__ = ["Term", "mean_field"]
