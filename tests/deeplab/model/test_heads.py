"""deeplab.model.heads against one F.conv2d for each branch, in float64."""

import pytest
import torch
import torch.nn.functional as F

from deeplab.model.heads import ASPP, FullyConnectedASPP

pytestmark = pytest.mark.processors

RATES = (6, 12, 18, 24)


def randomise(head):
    generator = torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        parameter.data.normal_(0, 0.1, generator=generator)
    return head.double().eval()


def features(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def reference_aspp(state, x, rates):
    """y = sum_r ( w_r *_r x + b_r )"""
    rows = len(state["classifier.bias"]) // len(rates)
    y = 0
    for k, rate in enumerate(rates):
        branch = slice(k * rows, (k + 1) * rows)
        weight, bias = state["classifier.weight"][branch], state["classifier.bias"][branch]
        y = y + F.conv2d(x, weight, bias, padding=rate, dilation=rate)
    return y


def reference_fully_connected(state, x, rates):
    """y = sum_r fc8_r( relu(fc7_r( relu(fc6_r(x)) )) )"""
    y = 0
    for k, rate in enumerate(rates):

        def rows(name, k=k):
            count = len(state[name]) // len(rates)
            return state[name][k * count : (k + 1) * count]

        z = F.conv2d(x, rows("fc6.weight"), rows("fc6.bias"), padding=rate, dilation=rate)
        z = F.conv2d(z.clamp(min=0), rows("fc7.weight"), rows("fc7.bias"))
        y = y + F.conv2d(z.clamp(min=0), rows("classifier.weight"), rows("classifier.bias"))
    return y


def assert_equal_within_rounding(found, expected, terms=2**11):
    assert found.shape == expected.shape
    error = (found - expected).abs().max()
    assert error <= terms * torch.finfo(found.dtype).eps * expected.abs().max()


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (41, 33)])
@pytest.mark.parametrize("rates", [RATES, (2, 4, 8, 12), (12,)])
def test_aspp_is_the_sum_of_a_convolution_for_each_rate(rates, size):
    head = randomise(ASPP(8, 5, rates))
    x = features(2, 8, *size)
    assert_equal_within_rounding(head(x), reference_aspp(head.state_dict(), x, rates))


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (27, 33)])
@pytest.mark.parametrize("rates", [RATES, (12,)])
def test_fully_connected_aspp_is_the_sum_of_its_branches(rates, size):
    head = randomise(FullyConnectedASPP(8, 5, rates, channels=16))
    x = features(2, 8, *size)
    expected = reference_fully_connected(head.state_dict(), x, rates)
    assert_equal_within_rounding(head(x), expected)


def test_at_the_papers_widths_the_heads_equal_their_branches():
    for head, reference in (
        (ASPP(2048, 21, RATES), reference_aspp),
        (FullyConnectedASPP(512, 21, RATES), reference_fully_connected),
    ):
        randomise(head)
        x = features(1, 2048 if reference is reference_aspp else 512, 3, 2)
        expected = reference(head.state_dict(), x, RATES)
        assert_equal_within_rounding(head(x), expected, terms=2**14)


def test_the_gradients_are_those_of_the_branches():
    head = randomise(FullyConnectedASPP(4, 3, RATES, channels=6))
    x = features(1, 4, 9, 8).requires_grad_()
    inputs = [x, *head.parameters()]
    grad = features(1, 3, 9, 8)
    found = torch.autograd.grad(head(x), inputs, grad)
    expected = reference_fully_connected(dict(head.named_parameters()), x, RATES)
    for mine, theirs in zip(found, torch.autograd.grad(expected, inputs, grad), strict=True):
        assert_equal_within_rounding(mine, theirs)


@pytest.mark.parametrize("wrong", [(6, 12, 18, 23), (12, 6, 18, 24)])
def test_the_check_sees_a_wrong_rate(wrong):
    x = features(1, 8, 31, 29)
    head = randomise(ASPP(8, 5, wrong))
    with pytest.raises(AssertionError):
        assert_equal_within_rounding(head(x), reference_aspp(head.state_dict(), x, RATES))
    head = randomise(FullyConnectedASPP(8, 5, wrong, channels=16))
    expected = reference_fully_connected(head.state_dict(), x, RATES)
    with pytest.raises(AssertionError):
        assert_equal_within_rounding(head(x), expected)


def test_dropout_follows_fc6_and_fc7_in_training_only():
    head = randomise(FullyConnectedASPP(8, 5, RATES, channels=16))
    assert head.drop6.p == head.drop7.p == 0.5
    x = features(1, 8, 4, 4)
    state = head.state_dict()
    head.drop6.p, head.drop7.p = 1.0, 0.0
    without_fc6 = state | {"fc6.weight": state["fc6.weight"] * 0, "fc6.bias": state["fc6.bias"] * 0}
    expected = reference_fully_connected(without_fc6, x, RATES)
    assert_equal_within_rounding(head.train()(x), expected)
    head.drop6.p, head.drop7.p = 0.0, 1.0
    biases = state["classifier.bias"].unflatten(0, (4, 5)).sum(0).view(1, 5, 1, 1)
    assert_equal_within_rounding(head(x), biases.expand(1, 5, 4, 4))
    expected = reference_fully_connected(state, x, RATES)
    assert_equal_within_rounding(head.eval()(x), expected)


@pytest.mark.parametrize("kind", [ASPP, FullyConnectedASPP])
def test_the_classifier_starts_at_a_hundredth_and_its_bias_at_zero(kind):
    torch.manual_seed(0)
    classifier = kind(512, 21, RATES).classifier
    weight = classifier.weight.detach()
    # n samples of N(0, s): mean within 5 s / sqrt(n), deviation within 5 s / sqrt(2 n).
    n = weight.numel()
    assert abs(weight.mean().item()) < 5 * 0.01 / n**0.5
    assert abs(weight.std().item() - 0.01) < 5 * 0.01 / (2 * n) ** 0.5
    assert not classifier.bias.any()


def test_fc6_and_fc7_start_with_the_variance_that_relu_keeps():
    torch.manual_seed(0)
    head = FullyConnectedASPP(512, 3, RATES)
    for layer, fan_in in ((head.fc6, 512 * 9), (head.fc7, 1024)):
        expected = (2 / fan_in) ** 0.5
        n = layer.weight.numel()
        assert abs(layer.weight.std().item() - expected) < 5 * expected / (2 * n) ** 0.5
        assert not layer.bias.any()
