"""A configuration takes the right types and ranges, and refuses the rest in one line."""

import dataclasses

import pytest

from deeplab.training import DataConfig, TrainConfig

LOSS = "one of cross_entropy, .*, dense_crf, or a table of them with their weights"
TAUGHT = "cross_entropy or another that learns from labels, with a weight above 0"
NONE_FOR_SCENES = r"none for generated scenes; name other data with --data \(data.name\)"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        # Types: nothing is converted but an integer to a number and a list to a tuple.
        ("steps", 3.5, "an integer"),
        ("steps", True, "an integer"),
        ("loss_stride", 8.0, "an integer"),
        ("lr", "fast", "a number"),
        ("lr", True, "a number"),
        ("lr", 10**400, "a number"),
        ("mirror", 1, "true or false"),
        ("weights", 3, "a text"),
        ("weights", None, "a text"),
        ("scales", 2, "a list of numbers"),
        ("scales", "12", "a list of numbers"),
        ("model_options", 3, "a table"),
        ("data", "x", "a table"),
        ("data.name", 3, "a text"),
        ("data.options", 3, "a table"),
        # Ranges.
        *((name, 0, "at least 1") for name in ("steps", "batch_size", "accumulate", "step_size")),
        *((name, 0, "at least 1") for name in ("scenes", "validation_scenes")),
        *((name, 0, "at least 1") for name in ("validate_every", "save_every", "log_every")),
        *((name, -1, "at least 0") for name in ("warmup", "workers", "seed", "weight_decay")),
        ("steps", 10**20, "at most 2147483647"),
        ("seed", 2**63, "at most 2147483647"),
        ("scenes", 9_000_001, "at most 9000000"),  # the next would be a validation scene
        ("validation_scenes", 1_000_001, "at most 1000000"),  # and here a test scene
        *((name, 0.0, "a number above 0") for name in ("lr", "power", "gamma", "head_lr_scale")),
        ("lr", float("nan"), "a finite number"),
        ("weight_decay", float("inf"), "a finite number"),
        ("momentum", 1.0, "a number below 1"),
        ("momentum", float("nan"), "a number below 1"),
        ("lr", 1e308, r"rates of at most 3.4e\+38"),
        # Choices.
        ("model", "unet", "one of deeplab_v1_7x7, .*, deeplab_v3plus"),
        ("policy", "cosine", "poly or step"),
        ("optimizer", "adam", "sgd or adamw"),
        ("precision", "float64", "auto, float32, bfloat16 or float16"),
        ("loss_stride", 4, "1 or 8"),
        # What belongs together.
        ("crop", 320, r"8k \+ 1, such as 321"),
        ("crop", 1, r"8k \+ 1, such as 321"),
        ("scales", (1.5, 0.5), "0 < smallest <= largest <= 4"),
        ("scales", (0.0, 1.0), "0 < smallest <= largest <= 4"),
        ("validation_scales", (), "at least one number, each from 0.1 to 4"),
        ("validation_scales", (0.05,), "at least one number, each from 0.1 to 4"),
        ("class_weights", (0.0, 0.0), "at least one above 0"),
        ("class_weights", "even", 'a list of numbers or "balanced"'),
        ("loss", "iou", LOSS),
        ("loss", ["dice"], LOSS),
        ("loss.dice", -1, "at least 0"),
        ("loss.dice", "much", "a number"),
        ("loss", {}, TAUGHT),
        ("loss", "dense_crf", TAUGHT),
        ("loss", {"dice": 0.0, "dense_crf": 1.0}, TAUGHT),
        *((name, -1, "at least 0") for name in ("rotate", "colour_jitter", "blur", "noise")),
        ("colour_jitter", 1.5, "at most 1.0"),
        ("rotate", 181, "at most 180.0"),
        *(
            ("augment", text, "package.module:function")
            for text in ("f", "a.b", "a:", ":f", "a-:f")
        ),
        ("ema", 1.0, "a number below 1"),
        ("auxiliary", -0.5, "at least 0"),
        ("label_smoothing", 1.0, "a number below 1"),
        ("data.root", "my/pictures", NONE_FOR_SCENES),
        ("data.train", "trainaug", NONE_FOR_SCENES),
        ("model_options.num_classes", 3, "none: the data set says it"),
        ("model_options.crf", True, "none: the field crf says it"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_with_what_was_expected_and_given(
    key, value, expected
):
    table, _, inner = key.partition(".")
    with pytest.raises(ValueError, match=rf"\A{key} must be {expected}, not .*\Z") as error:
        TrainConfig(**{table: {inner: value} if inner else value})
    assert repr(value)[:50] in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scales": [1, "2"]}, r"scales must be a number, not '2'"),
        ({"class_weights": [1, -1]}, r"class_weights must be at least 0, not -1"),
        ({"scale_mode": "discrete", "scales": ()}, r"scales must be at least one number, each"),
        ({"batch_size": 3, "accumulate": 2}, r"batch_size must be a multiple of accumulate = 2"),
        ({"loss": {"iou": 1.0}}, r"loss\.iou: unknown loss; the known ones are cross_entropy, "),
        ({"loss": "dice", "label_smoothing": 0.1}, r"label_smoothing must be 0 without cross_en"),
        ({"loss": "dice", "class_weights": [1, 2]}, r"class_weights must be none without cross_"),
        ({"crf": True, "loss_stride": 8}, r"loss_stride must be 1 with crf"),
        ({"model_options": {"scales": [1, 0.6]}, "loss_stride": 8}, r"model_options.scales must"),
        ({"stepz": 3}, r"stepz: unknown key; the known ones are accumulate, .*, steps, "),
        ({"data": {"nam": "x"}}, r"data.nam: unknown key; the known ones are name, options, "),
    ],
)
def test_values_that_do_not_go_together_and_unknown_keys_are_refused(values, message):
    with pytest.raises(ValueError, match=rf"\A{message}.*\Z"):
        TrainConfig(**values)


def test_integers_are_numbers_and_lists_are_tuples():
    config = TrainConfig(lr=1, scales=[1, 2], class_weights=[1, 0.5], data={"name": "folder"})
    assert repr((config.lr, config.scales)) == "(1.0, (1.0, 2.0))"
    assert config.class_weights == (1.0, 0.5)
    assert config.data == DataConfig("folder")


def test_a_configuration_is_constant_and_goes_through_plain_values():
    config = TrainConfig(data=DataConfig("folder", options={"a": {"b": 1}}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0  # type: ignore[misc]
    assert TrainConfig(**dataclasses.asdict(config)) == config
