"""The configuration of a run refuses what makes no sense."""

import pytest

from deeplab.training import DataConfig, TrainConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "unet"),
        ("steps", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("power", -1.0),
        ("head_lr_scale", 0.0),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("weight_decay", float("inf")),
        ("lr", 1e308),
        ("steps", 10**20),
        ("seed", 2**63),
        ("model_options.num_classes", 3),
        ("model_options.crf", True),
        ("data.root", "my/pictures"),  # and no data set is named
        ("data.train", "trainaug"),
        ("crop", 320),
        ("crop", 1),
        ("scales", (1.5, 0.5)),
        ("scales", (0.0, 1.0)),
        ("loss_stride", 4),
        ("validate_every", 0),
        ("precision", "float64"),
        ("workers", -1),
        ("seed", -1),
        ("warmup", -1),
        ("scenes", 0),
        ("validation_scenes", 0),
        ("scenes", 9_000_001),  # the next would be a validation scene
        ("validation_scenes", 1_000_001),  # and here a test scene
    ],
)
def test_configuration_refuses_values_without_sense(field, value):
    table, _, key = field.partition(".")
    given = DataConfig(**{key: value}) if table == "data" else {key: value} if key else value
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        TrainConfig(**{table: given})
