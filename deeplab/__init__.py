"""DeepLab v1 (ICLR 2015) and v2 (TPAMI 2018): models, training, evaluation, command line."""

import crf as crf  # raises ImportError where something else named `kernels` is in its place

if getattr(crf, "DISTRIBUTION", None) != "deeplab-triton":
    raise ImportError(
        "deeplab needs the package 'crf' of deeplab-triton, but the folder or package "
        f"{crf.__file__ or next(iter(crf.__path__))} hides it. Rename it, or run Python elsewhere."
    )
