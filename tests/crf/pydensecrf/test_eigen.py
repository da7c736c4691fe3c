"""crf.pydensecrf.eigen takes what pydensecrf.eigen takes, and gives arrays."""

import numpy as np
import pytest

from crf.pydensecrf import densecrf, eigen


@pytest.mark.parametrize(("make", "shape"), [(eigen.vectorXf, (5,)), (eigen.matrixXf, (3, 4))])
def test_an_array_is_copied(make, shape):
    given = np.random.default_rng(0).random(shape, np.float32)
    made = make(given.T.copy().T)
    np.testing.assert_array_equal(made, given)
    made[:] = 0
    assert given.any()


def test_what_inference_gives_is_a_matrix():
    marginals = densecrf.DenseCRF(4, 2).inference(1)
    assert isinstance(marginals, eigen.MatrixXf)
    np.testing.assert_array_equal(eigen.matrixXf(marginals), marginals)


@pytest.mark.parametrize(
    ("make", "given", "error"),
    [
        (eigen.matrixXf, np.zeros((3, 3, 3), np.float32), ValueError),
        (eigen.matrixXf, np.zeros((3, 3)), ValueError),
        (eigen.vectorXf, np.zeros((3, 3), np.float32), ValueError),
        (eigen.vectorXf, np.zeros(3, np.int64), ValueError),
        (eigen.matrixXf, None, TypeError),
        (eigen.vectorXf, [1.0, 2.0], TypeError),
    ],
)
def test_what_is_no_float32_array_of_that_shape_is_refused(make, given, error):
    with pytest.raises(error, match="arr must be"):
        make(given)
