"""The cases of tests/fakecuda: host code of every GPU path, at the sizes that are published.

A case makes what it needs, and gives the function that is counted. That function checks what comes
out: shape, dtype, strides and device.
"""

from fake_cuda import Case

from fake_cuda_cases import atrous, exact, lattice, mean_field, models, separable

CASES: dict[str, Case] = {
    **atrous.CASES,
    **lattice.CASES,
    **exact.CASES,
    **separable.CASES,
    **mean_field.CASES,
    **models.CASES,
}
