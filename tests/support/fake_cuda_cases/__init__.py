"""The cases of tests/fakecuda: host code of every GPU path, at the sizes that are published.

A case prepares what it needs. What is counted then checks what comes out too: shape, dtype, strides
and device.
"""

from fake_cuda import Case

from fake_cuda_cases import atrous, filters, mean_field, models

CASES: dict[str, Case] = {**atrous.CASES, **filters.CASES, **mean_field.CASES, **models.CASES}
