"""The fully connected CRF of Krähenbühl and Koltun (2011), as DeepLab v1 and v2 use it."""

import kernels

if getattr(kernels, "DISTRIBUTION", None) != "deeplab-triton":
    if kernels.__file__ is None:  # no package, but a folder
        raise ImportError(
            f"crf needs the package 'kernels' of deeplab-triton, but the folder "
            f"{next(iter(kernels.__path__))} hides it. Rename the folder, or run Python elsewhere."
        )
    raise ImportError(
        f"crf needs the package 'kernels' of deeplab-triton, but {kernels.__file__} is another "
        "package of that name (Hugging Face's 'kernels', most likely). The two cannot share an "
        "environment: uninstall the other one, or use a separate virtual environment."
    )

from crf.layer import DenseCRF
from crf.potentials import Bilateral, Gaussian, Pairwise, grid_features

DISTRIBUTION = "deeplab-triton"  # tells this package from others of the same import name

__all__ = ["Bilateral", "DenseCRF", "Gaussian", "Pairwise", "grid_features"]
