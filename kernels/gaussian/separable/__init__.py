"""The separable bilateral filter: landmark colours times a coarse grid, all in matrix products.

landmarks.py    which colours stand for all, and the kernel between them
grid.py         positions on a grid
factors.py      `Separable`, the filter as data, and how it is built
eager.py        the oracle
triton.py       splat and slice on a GPU
ops.py          custom operators
"""
