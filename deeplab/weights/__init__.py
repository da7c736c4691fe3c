"""Weights on disk: files that say which model they belong to, and those of other projects.

    save_weights(model, path, metadata)     the network's tensors and what is known about them
    load_model(path)                        the model that such a file describes, to evaluate
    load_checkpoint(path)                   the model that any known file holds the weights of
    load_weights(model, path)               any known file's tensors into a model made already
    read_metadata(path)                     what a file of save_weights says about itself

`deeplab.weights.sources` lists the known files; a name of `deeplab.weights.registry` serves in
place of a path, and is downloaded once. Nothing in any file is executed, and no size that it claims
is allocated before it has been checked.
"""

from deeplab.weights.file import SHIPPED, load_model, read_metadata, save_weights
from deeplab.weights.loading import Loaded, load_weights
from deeplab.weights.recognition import Opened, load_checkpoint
from deeplab.weights.sources import SOURCES, Source

__all__ = [
    "SHIPPED",
    "SOURCES",
    "Loaded",
    "Opened",
    "Source",
    "load_checkpoint",
    "load_model",
    "load_weights",
    "read_metadata",
    "save_weights",
]
