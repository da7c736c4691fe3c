"""DeepLab v1 (ICLR 2015) and v2 (TPAMI 2018): models, training, evaluation, command line."""

import crf as crf  # raises ImportError where another package named `kernels` is installed
