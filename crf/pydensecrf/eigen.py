"""Drop-in for `pydensecrf.eigen`: what wraps an Eigen matrix there is a NumPy array here.

Arrays must be float32, as there; unlike there, they need not be contiguous.
"""

from typing import Any

import numpy as np

from crf.pydensecrf.arguments import FloatArray, array_of

__all__ = ["MatrixXf", "VectorXf", "matrixXf", "vectorXf"]

MatrixXf = VectorXf = np.ndarray


def vectorXf(arr: Any) -> FloatArray:
    """A copy of a float32 vector `[n]`.

    Raises:
        TypeError: not an array (a list, None).
        ValueError: another dtype or number of dimensions.
    """
    return _copied(arr, 1)


def matrixXf(arr: Any) -> FloatArray:
    """A copy of a float32 matrix `[m, n]`.

    Raises:
        TypeError: not an array (a list, None).
        ValueError: another dtype or number of dimensions.
    """
    return _copied(arr, 2)


def _copied(arr: Any, ndim: int) -> FloatArray:
    array = array_of("arr", arr)
    if array.dtype != np.float32 or array.ndim != ndim:
        raise ValueError(
            f"arr must be float32 with {ndim} dimensions, not {array.dtype} with {array.ndim}: "
            f"{array.shape}"
        )
    return np.array(array, order="C")
