"""The folded copy: the scores of the model up to rounding, whatever the network, at any time."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from networks import two_convolutions
from torch import Tensor, nn

import crf
from deeplab.errors import InputError
from deeplab.model import DeepLab, build, deeplab_v2_small
from deeplab.model.batch_norm import FrozenBatchNorm2d
from deeplab.predict import Predictor
from deeplab.predict.folding import (
    FoldedNetwork,
    PointwiseConv2d,
    can_be_copied,
    folded,
    folding_pairs,
)

SLIM = (
    "deeplab_v2_small",
    "deeplab_v3_mobilenet",
    "deeplab_v3plus_resnet18",
    "timm:test_efficientnet",
)


def with_statistics(model: DeepLab, seed: int = 0) -> DeepLab:
    """Every batch normalisation gets constants of its own, so that folding has something to do."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
                module.running_mean.normal_(0, 0.5, generator=random)
                module.running_var.uniform_(0.5, 2, generator=random)
                module.weight.uniform_(0.5, 1, generator=random)
                module.bias.normal_(0, 0.5, generator=random)
    return model.eval()


@pytest.fixture
def small() -> DeepLab:
    torch.manual_seed(0)
    return with_statistics(deeplab_v2_small(num_classes=4))


def picture(batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, 45, 61, generator=torch.Generator().manual_seed(1))


def scores(model: DeepLab, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x, upsample=False)


def of_copy(model: DeepLab, x: Tensor) -> Tensor:
    return FoldedNetwork(model).current()(x)


def assert_within_budget(model: DeepLab, found: Tensor, x: Tensor) -> None:
    """At most twice the error that PyTorch's own layers have in float32, in the layout of memory
    in which it is larger, and a rounding of the largest score."""
    exact = scores(copy.deepcopy(model).double(), x.double())
    layouts = torch.contiguous_format, torch.channels_last
    each = [scores(model, x.contiguous(memory_format=layout)) for layout in layouts]
    own = max((one - exact).abs().max() for one in each)
    budget = 2 * own + torch.finfo(torch.float32).eps * exact.abs().max()
    assert (found - exact).abs().max() <= budget


def norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]


@pytest.fixture(params=SLIM)
def network(request: pytest.FixtureRequest) -> DeepLab:
    torch.manual_seed(0)
    if not request.param.startswith("timm:"):
        return with_statistics(build(request.param, num_classes=3))
    request.getfixturevalue("timm")
    return with_statistics(build("deeplab_v3plus", num_classes=3, backbone=request.param))


@pytest.mark.processors
def test_a_folded_copy_gives_the_scores_of_the_model(network: DeepLab) -> None:
    x = picture(2)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        assert_within_budget(network, of_copy(network, x), x)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_every_norm_is_folded_and_costs_less_than_a_rounding(network: DeepLab) -> None:
    """In float64 the copy is nearer to the model than the model itself is in float32."""
    found, x = folded(network), picture()
    # the pyramid of v3 takes its normalisation in by itself
    assert len(norms(found)) == ("v3" in network.config["model"])
    exact = scores(copy.deepcopy(network).double(), x.double())
    own = (scores(network, x) - exact).abs().max()
    assert (scores(found.double(), x.double()) - exact).abs().max() < own
    assert any(isinstance(module, PointwiseConv2d) for module in found.modules())
    assert not any(isinstance(module, PointwiseConv2d) for module in network.modules())


def test_a_predictor_folds_unless_it_is_told_not_to(small: DeepLab) -> None:
    image = np.random.default_rng(0).integers(0, 256, (45, 61, 3), dtype=np.uint8)
    found, plain = (Predictor(small, fold=fold).output([image]).logits for fold in (True, False))
    x = small.preprocess(image)
    with torch.no_grad():
        assert torch.equal(plain, small(x))
        assert torch.equal(found, small.upsample(of_copy(small, x), (45, 61)))
    assert not torch.equal(found, plain)


def test_an_encoder_that_does_not_take_the_small_picture_is_left_as_it_is(small: DeepLab) -> None:
    def refuse(module: nn.Module, given: tuple[Tensor]) -> None:
        if given[0].shape[2] != 45:
            raise ValueError("45 pixels alone")

    small.backbone.register_forward_pre_hook(refuse)
    assert folding_pairs(small) == []
    x = picture()
    assert_within_budget(small, scores(folded(small), x), x)


@pytest.mark.slow
def test_a_compiled_copy_gives_the_scores_of_the_model() -> None:
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("torch.compile's C++ of a transposition does not compile without AVX2")
    model, x = two_convolutions(), picture()
    compiled = FoldedNetwork(model, compiles=True)
    with torch.no_grad():
        assert_within_budget(model, compiled.current()(x), x)
    from torch._inductor import config

    missing = pytest.raises(InputError, match=r"compile must be left out .* C\+\+ compiler, such")
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), missing:
        Predictor(two_convolutions(num_classes=2), compile=True)(np.zeros((9, 9, 3), np.uint8))


class ByName(nn.Module):
    """A backbone that gives functions its tensors by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 512, 3, padding=1), nn.BatchNorm2d(512)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(input=x, weight=self.conv.weight, bias=self.conv.bias)
        norm = self.norm
        return nn.functional.batch_norm(
            input=x,
            running_mean=norm.running_mean,
            running_var=norm.running_var,
            weight=norm.weight,
            bias=norm.bias,
        )


def test_tensors_that_are_given_by_name_are_seen(small: DeepLab) -> None:
    small.backbone = ByName()
    with_statistics(small)
    assert folding_pairs(small) == [(small.backbone.conv, small.backbone.norm)]


class Odd(nn.Module):
    """A backbone in which `twice` and `good` may be folded, and nothing else."""

    def __init__(self, batch_norm: nn.Module) -> None:
        super().__init__()
        self.kept, self.alone = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.twice, self.good = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 512, 3, bias=False)
        self.norm, self.shared, self.both, self.last = map(nn.BatchNorm2d, (4, 4, 4, 512))
        self.other = batch_norm

    def forward(self, x: Tensor) -> Tensor:
        kept, alone = self.kept(x), self.alone(x)
        x = self.norm(kept) + kept  # taken by the sum too
        x = self.both(alone) + self.both(x)  # whose norm takes something else too
        x = self.shared(self.twice(x)) + self.shared(self.twice(x + 1))  # once a call: may be
        x = self.other(x)  # behind no convolution
        return self.last(self.good(x))


def test_only_a_norm_that_alone_takes_what_a_convolution_gives_is_folded(small: DeepLab) -> None:
    torch.manual_seed(0)
    small.backbone = Odd(nn.BatchNorm2d(4))
    with_statistics(small)
    odd = small.backbone
    assert folding_pairs(small) == [(odd.twice, odd.shared), (odd.good, odd.last)]
    x = picture()
    with torch.no_grad():
        assert_within_budget(small, folded(small)(x, upsample=False), x)


class Both(nn.Module):
    """A head whose scores are what its convolution gives, and that normalises them besides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(512, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.conv(x)
        self.norm(scores)
        return scores


def test_a_convolution_whose_own_result_leaves_the_network_is_not_folded(small: DeepLab) -> None:
    small.head = Both()
    with_statistics(small)
    assert (small.head.conv, small.head.norm) not in folding_pairs(small)
    x = picture()
    assert_within_budget(small, of_copy(small, x), x)


def test_a_norm_of_the_batchs_statistics_is_not_folded(small: DeepLab) -> None:
    small.backbone = Odd(nn.BatchNorm2d(4, track_running_stats=False))
    odd = small.eval().backbone
    odd.last.track_running_stats, odd.last.running_mean, odd.last.running_var = False, None, None
    assert folding_pairs(small) == [(odd.twice, odd.shared)]


def test_what_is_not_folded_is_shared_and_the_crf_layer_is_left_out(small: DeepLab) -> None:
    small.crf = crf.DenseCRF(4)
    network = folded(small)
    assert network.crf is None
    assert small.crf is not None
    assert network.head.classifier.weight is small.head.classifier.weight
    assert network.backbone.conv1.weight is not small.backbone.conv1.weight


def test_a_change_of_the_model_is_followed(small: DeepLab) -> None:
    network, x = FoldedNetwork(small), picture()
    with torch.no_grad():
        network.current()(x)
        for change in (
            lambda: small.backbone.layer4[0].conv1.weight.mul_(1.5),
            lambda: small.backbone.bn1.running_var.add_(1),
            lambda: small.load_state_dict(with_statistics(deeplab_v2_small(4), 1).state_dict()),
            lambda: small.set_scales((1.0, 0.5)),
            lambda: setattr(small, "scales", None),
            lambda: small.backbone.bn1.bias.data.add_(1),
            lambda: setattr(small.backbone.bn1, "eps", 0.5),
            lambda: setattr(small.backbone, "relu", nn.Hardswish()),
        ):
            before = scores(small, x)
            change()
            assert_within_budget(small, network.current()(x), x)
            assert not torch.equal(before, scores(small, x))


def test_a_step_of_a_fused_optimiser_is_followed(small: DeepLab) -> None:
    """It leaves the versions of tensors as they were."""
    network, x = FoldedNetwork(small), picture()
    with torch.no_grad():
        network.current()(x)
    small(x).square().mean().backward()
    torch.optim.AdamW(small.parameters(), lr=1e-2, fused=True).step()
    with torch.no_grad():
        assert_within_budget(small, network.current()(x), x)


def test_a_score_that_is_added_is_followed() -> None:
    one = with_statistics(deeplab_v2_small(num_classes=1))
    image = np.zeros((9, 9, 3), np.uint8)
    predictor = Predictor(one)
    assert predictor.output([image]).logits.shape[1] == 1
    one.with_zero_score()
    assert predictor.output([image]).logits.shape[1] == 2


def test_a_model_made_in_inference_mode_is_folded() -> None:
    with torch.inference_mode():
        model = with_statistics(deeplab_v2_small(num_classes=2))
    found = Predictor(model)(np.zeros((9, 9, 3), np.uint8))
    assert found.labels.shape == (9, 9)


def test_a_copy_is_made_once_for_several_threads(small: DeepLab, monkeypatch) -> None:
    made = []
    monkeypatch.setattr(
        "deeplab.predict.folding.folded", lambda model: (made.append(model), folded(model))[1]
    )
    network, x = FoldedNetwork(small), picture()

    def call(_: int) -> Tensor:
        with torch.no_grad():
            return network.current()(x)

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(call, range(6))
    assert all(torch.equal(first, other) for other in others)
    assert made == [small]
    sent = pickle.loads(pickle.dumps(network))
    assert torch.equal(sent.current()(x), network.current()(x))


def test_a_model_that_somebody_looks_into_is_used_as_it_is(small: DeepLab) -> None:
    image, seen = np.zeros((20, 30, 3), np.uint8), []
    predictor = Predictor(small)
    predictor(image)
    assert can_be_copied(small)
    handle = small.backbone.layer1.register_forward_hook(lambda *_: seen.append(1))
    predictor(image)
    assert seen == [1]
    handle.remove()
    predictor(image)
    assert seen == [1]
    small.compile(backend="eager")
    assert not can_be_copied(small)
