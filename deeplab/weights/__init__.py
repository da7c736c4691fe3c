"""Weights on disk: safetensors files that say which model they belong to, and the shipped one.

    save_weights(model, path, metadata)     the network's tensors and what is known about them
    load_model(path)                        the model that the file describes, in evaluation mode
    load_weights(model, path)               the file's tensors into a model made already
    read_metadata(path)                     what the file says about itself

Nothing in such a file is executed, and nothing is allocated before its header has been checked.
"""

from deeplab.weights.file import SHIPPED, load_model, load_weights, read_metadata, save_weights

__all__ = ["SHIPPED", "load_model", "load_weights", "read_metadata", "save_weights"]
