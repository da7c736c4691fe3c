"""Training with the papers' recipe: SGD with momentum, the poly policy, parameter groups.

    lr(i) = lr_0 * (1 - i / steps) ** power,     power = 0.9

times each group's own factor (`DeepLab.param_groups`), with a linear warm-up in front. Every
sample is a random picture, randomly scaled, mirrored and cropped; its cross entropy, or another
loss of `deeplab.training.losses`, is taken at `loss_stride`: 1 compares the upsampled logits with
the labels, 8 the logits with `labels[::8, ::8]` as the papers do (the same grid, since
align_corners maps n = 8k + 1 pixels to k + 1). Source: Chen et al., DeepLab v2, section 4.1.

    from deeplab.training import DataConfig, TrainConfig, train

    config = TrainConfig(data=DataConfig("voc2012", root="VOCdevkit/VOC2012"))
    result = train(config, "voc.safetensors")

The defaults of `TrainConfig` are the recipe of the weights that the package ships; its scores are
in bench/records/scenes_deeplab_v2_small.json. A run is a function of its configuration: sample i
depends on (seed, i) alone, and a run that was stopped goes on as if it had not been.

`run.py` is a run from its configuration to its result, `trainer.py` its loop, `step.py` one update,
`callbacks.py` who is told of it as it goes (docs/callbacks.md).
"""

from deeplab.training.callbacks import Callback
from deeplab.training.config import DataConfig, TrainConfig
from deeplab.training.run import TrainResult, train

__all__ = ["Callback", "DataConfig", "TrainConfig", "TrainResult", "train"]
