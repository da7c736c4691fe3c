"""The learning rate over a run, and the parameter groups that reach the optimiser."""

from dataclasses import replace

import pytest
import torch
from tiny_training import SHORT, run

from deeplab.model import deeplab_v2_small
from deeplab.training import TrainConfig
from deeplab.training.schedule import learning_rate, make_optimizer


def rate(step, **changes):
    return learning_rate(replace(TrainConfig(lr=0.1, warmup=0), **changes), step)


def test_poly_schedule_has_the_papers_values():
    assert rate(0, steps=1000) == 0.1
    assert rate(500, steps=1000) == pytest.approx(0.1 * 0.535886731)
    assert rate(999, steps=1000) == pytest.approx(0.1 * 0.001995262)
    assert rate(250, steps=1000, power=1.0) == pytest.approx(0.075)


def test_step_schedule_is_a_tenth_after_every_2000_iterations():
    assert [rate(step, policy="step", lr=1e-3) for step in (0, 1999)] == [1e-3, 1e-3]
    assert rate(2000, policy="step", lr=1e-3) == pytest.approx(1e-4)
    assert rate(4500, policy="step", lr=1e-3) == pytest.approx(1e-5)


def test_warmup_rises_linearly_and_then_leaves_the_schedule_alone():
    ramp = [rate(i, steps=2**31 - 1, lr=1.0, warmup=4) for i in range(6)]
    assert ramp == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0], abs=1e-6)


def test_group_factors_and_schedule_reach_the_optimizer(pictures, monkeypatch):
    seen = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            keys = ("lr", "weight_decay", "momentum")
            seen.append({g["name"]: tuple(g[key] for key in keys) for g in self.param_groups})
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Recorder)
    config = replace(SHORT, steps=2, lr=0.01, head_lr_scale=10, weight_decay=0.003)
    run(config, pictures)
    second = 0.01 * 0.5**0.9
    expected = {
        "body_weight": (second, 0.003, 0.9),
        "body_norm": (second, 0.0, 0.9),
        "head_weight": (10 * second, 0.003, 0.9),
        "head_bias": (20 * second, 0.0, 0.9),
    }
    assert seen[0]["body_weight"][0] == 0.01
    assert seen[1].keys() == expected.keys()
    for name, values in expected.items():
        assert seen[1][name] == pytest.approx(values), name


@pytest.mark.parametrize("scale", [0.2, 1.0, 10.0])
def test_head_lr_scale_is_relative_to_the_body(scale):
    config = replace(SHORT, head_lr_scale=scale)
    groups = make_optimizer(deeplab_v2_small(5), config).param_groups
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["head_weight"] / rates["body_weight"] == pytest.approx(scale)
    assert rates["head_bias"] / rates["body_weight"] == pytest.approx(2 * scale)


def test_adamw_takes_the_same_groups(pictures):
    config = replace(SHORT, optimizer="adamw", lr=1e-3, weight_decay=0.05)
    optimizer = make_optimizer(deeplab_v2_small(5), config)
    assert isinstance(optimizer, torch.optim.AdamW)
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays["body_weight"] == decays["head_weight"] == 0.05
    assert decays["body_norm"] == decays["head_bias"] == 0
    trained = run(replace(config, steps=30, scales=(1.0, 1.0)), pictures)
    assert trained.loss < run(replace(config, steps=1), pictures).loss
