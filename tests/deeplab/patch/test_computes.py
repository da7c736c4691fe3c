"""Patched pyramids of torchvision compute what they did before."""

import copy
from typing import Any

import pytest
import torch
from patched_models import (
    MODES,
    RATES,
    assert_same_state,
    assert_within_budget,
    compare,
    patched_copy,
    randomise,
    run,
)
from torch import Tensor, nn
from torch.nn.utils import fusion, parametrizations

from deeplab.patch import patch

pytestmark = pytest.mark.processors

IMPLS = ("reference", "auto")


# What it computes


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@MODES
def test_output_and_gradients_stay_within_the_error_budget(aspp, image, impl, dtype, train):
    compare(aspp.train(train).to(dtype), image.to(dtype), impl)


@pytest.mark.parametrize("impl", IMPLS)
@MODES
def test_float64_agrees_to_a_few_roundings(aspp, image, impl, train):
    twin = patched_copy(aspp.train(train).double(), impl)
    expected, found = run(aspp, image.double()), run(twin, image.double())
    for name, reference in expected.items():
        allowed = 20 * torch.finfo(torch.float64).eps * reference.abs().max()
        assert (found[name] - reference).abs().max() <= allowed, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_inference_in_half_precision_folds_and_stays_within_budget(aspp, image, fused_calls, dtype):
    compare(aspp.to(dtype), image.to(dtype), gradients=False)
    assert fused_calls[0]["scale"].dtype == dtype


@torch.inference_mode()
def test_inference_under_autocast_folds_and_stays_within_budget(aspp, image, fused_calls):
    exact = run(copy.deepcopy(aspp).double(), image.double(), gradients=False)
    twin = patched_copy(aspp)
    with torch.autocast("cpu", torch.bfloat16):
        unpatched, found = run(aspp, image, gradients=False), run(twin, image, gradients=False)
    assert fused_calls[0]["scale"].dtype == torch.float32
    assert_within_budget(found, unpatched, exact, torch.finfo(torch.bfloat16).eps)


@MODES
def test_channels_last_stays_within_the_error_budget(aspp, image, train):
    aspp.train(train).to(memory_format=torch.channels_last)
    compare(aspp, image.to(memory_format=torch.channels_last))


@MODES
def test_autocast_stays_within_the_error_budget_and_gives_its_dtype(aspp, image, train):
    aspp.train(train)
    exact = run(copy.deepcopy(aspp).double(), image.double())
    twin = patched_copy(aspp)
    with torch.autocast("cpu", torch.bfloat16):
        unpatched, found = run(aspp, image), run(twin, image)
    assert found["output"].dtype == torch.bfloat16
    assert_within_budget(found, unpatched, exact, torch.finfo(torch.bfloat16).eps)


def test_evaluation_is_one_call_with_batchnorm_and_relu_in_it(aspp, image, fused_calls):
    patch(aspp, "reference")
    aspp(image)
    (options,) = fused_calls
    expected = {"rates": list(RATES), "fuse": "concat", "impl": "reference", "activation": "relu"}
    assert options == options | expected
    assert options["scale"].shape == options["shift"].shape == (3 * 16,)


def test_training_is_one_call_and_updates_statistics_exactly_as_before(aspp, image, fused_calls):
    twin = patched_copy(aspp.train())
    for _ in range(2):
        assert torch.equal(twin(image), aspp(image))
    assert [options["scale"] for options in fused_calls] == [None, None]
    assert_same_state(twin, aspp)
    assert twin.convs[1][1].num_batches_tracked == 2


def test_batchnorms_frozen_in_training_keep_their_statistics(aspp, image, fused_calls):
    aspp.train()
    aspp.convs[2][1].eval()
    frozen = aspp.convs[2][1].running_mean.clone()
    twin = compare(aspp, image)
    assert fused_calls[0]["scale"] is None
    assert_same_state(twin, aspp)
    assert torch.equal(twin.convs[2][1].running_mean, frozen)


def test_pyramid_whose_batchnorms_are_all_frozen_folds_them_in_training(aspp, image, fused_calls):
    aspp.train()
    for branch in aspp.convs[1:4]:
        branch[1].eval()
    twin = compare(aspp, image)
    assert fused_calls[0]["scale"] is not None
    assert_same_state(twin.convs, aspp.convs)
    # The projection sees what the folded constants gave, rounded elsewhere.
    twin, aspp, image = twin.double(), aspp.double(), image.double()
    twin.project.load_state_dict(aspp.project.state_dict())
    twin(image)
    aspp(image)
    for name, tensor in twin.project.state_dict().items():
        torch.testing.assert_close(tensor, aspp.project.state_dict()[name])


@MODES
@pytest.mark.parametrize(
    ("make", "folds"),
    [
        (lambda: nn.SyncBatchNorm(16), True),
        (lambda: nn.BatchNorm2d(16, affine=False), True),
        (lambda: nn.BatchNorm2d(16, eps=0.1), True),
        (lambda: nn.BatchNorm2d(16, track_running_stats=False), False),
        (lambda: nn.GroupNorm(4, 16), False),
        (lambda: nn.Identity(), False),
    ],
    ids=["sync", "without affine", "eps", "batch statistics", "group norm", "none"],
)
def test_whatever_normalises_a_branch_is_followed(aspp, image, fused_calls, make, folds, train):
    for branch in aspp.convs[1:4]:
        branch[1] = make()
        if getattr(branch[1], "running_var", None) is not None:
            nn.init.uniform_(branch[1].running_var, 0.2, 2)
            nn.init.normal_(branch[1].running_mean)
        branch[2].inplace = True
    assert_same_state(compare(aspp.train(train), image), aspp)
    assert (fused_calls[0]["scale"] is not None) == (folds and not train)


def test_batchnorm_merged_into_its_convolution_leaves_a_bias_that_counts(aspp, image, fused_calls):
    branch = aspp.convs[2]
    branch[0] = fusion.fuse_conv_bn_eval(branch[0], branch[1])
    branch[1] = nn.Identity()
    compare(aspp, image, gradients=False)
    assert len(fused_calls[0]["rates"]) == 3


def test_convolution_of_another_width_is_left_to_its_branch(aspp, image, fused_calls):
    aspp.convs[2] = nn.Sequential(nn.Conv2d(32, 16, 5, padding=2), nn.ReLU())
    compare(aspp, image)
    assert fused_calls[0]["rates"] == [1, 12]


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Wrapped(nn.Conv2d):
    def _conv_forward(self, *args: Any) -> Tensor:
        return 2 * super()._conv_forward(*args)


@pytest.mark.parametrize("kind", [Doubled, Wrapped])
def test_convolution_that_computes_something_else_is_called(aspp, image, fused_calls, kind):
    aspp.convs[2][0].__class__ = kind
    compare(aspp, image)
    assert fused_calls[0]["rates"] == [1, 12]


@pytest.mark.parametrize("place", [0, 1, 2], ids=["convolution", "norm", "relu"])
def test_forward_set_on_a_module_of_a_branch_runs(in_float64, place):
    aspp, image = in_float64
    twin = patched_copy(aspp)
    module = twin.convs[2][place]
    ran, forward = [], module.forward
    module.forward = lambda x: ran.append(place) or forward(x)
    torch.testing.assert_close(twin(image), aspp(image))
    assert ran == [place]


def test_parametrised_weights_are_followed(aspp, image, fused_calls):
    parametrizations.weight_norm(aspp.convs[1][0])
    compare(aspp, image)
    assert len(fused_calls[0]["rates"]) == 3


def test_weights_and_statistics_that_change_after_the_patch_are_followed(in_float64):
    aspp, image = in_float64
    twin = patched_copy(aspp)
    twin(image)
    other = randomise(copy.deepcopy(aspp))
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.2)
    twin.load_state_dict(other.state_dict())
    torch.testing.assert_close(twin(image), other(image))


@pytest.mark.slow
@MODES
@torch.no_grad()
def test_deeplabv3_resnet101_computes_what_it_did(torchvision, fused_calls, train):
    make = torchvision.deeplabv3.deeplabv3_resnet101
    model = make(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)
    randomise(model.classifier).train(train)
    image = torch.randn(2, 3, 65, 65)
    exact = copy.deepcopy(model).double()(image.double())
    twin = patched_copy(model)
    assert_within_budget(twin(image), model(image), exact, torch.finfo(torch.float32).eps)
    assert fused_calls[0]["rates"] == [12, 24, 36]
    assert_same_state(twin, model)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@MODES
def test_cuda_stays_within_the_error_budget(aspp, image, dtype, train):
    compare(aspp.train(train).cuda().to(dtype), image.cuda().to(dtype))
