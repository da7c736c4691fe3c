"""Training recipes as TOML files: the papers' and one for each data set that the package knows.

`deeplab train --config voc12_resnet101` finds them by name; `deeplab.training.recipe` reads
them. Keys are the fields of `TrainConfig`; a file says where its numbers come from.
"""
