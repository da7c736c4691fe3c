"""Patched pyramids of torchvision and segmentation_models_pytorch compute what they did before."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import fusion, parametrizations, prune

import kernels.patch
from kernels.patch import patch, unpatch

IMPLS = ("eager", "op", "auto")
RATES = (1, 3, 12)  # the last reaches beyond most of the map
MODES = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


@pytest.fixture(scope="session")
def smp(torchvision: Any) -> Any:
    try:
        return importlib.import_module("segmentation_models_pytorch")
    except ModuleNotFoundError as error:
        pytest.skip(f"segmentation_models_pytorch is not installed: {error}")


def randomise(model: Any) -> Any:
    """Statistics and affines that leave no BatchNorm an identity, and no dropout."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.2, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.fixture
def aspp(torchvision: Any) -> Any:
    return randomise(torchvision.deeplabv3.ASPP(32, RATES, 16)).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 32, 17, 14)


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of every fused convolution from here on."""
    calls: list[dict[str, Any]] = []
    compute = kernels.patch.multi_rate_atrous_conv2d

    def record(*args: Any, **options: Any) -> Tensor:
        calls.append(options)
        return compute(*args, **options)

    monkeypatch.setattr(kernels.patch, "multi_rate_atrous_conv2d", record)
    return calls


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def patched_copy(model: nn.Module, impl: str = "auto") -> Any:
    twin = copy.deepcopy(model)
    assert patch(twin, impl) == 1
    return twin


def run(model: Any, image: Tensor, gradients: bool = True) -> dict[str, Tensor]:
    """Output, and gradients of the input and of every parameter, by name."""
    image = image.detach().clone(memory_format=torch.preserve_format).requires_grad_(gradients)
    output = model(image)
    found = {"output": output.detach()}
    if gradients:
        named = {"input": image, **dict(model.named_parameters())}
        cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
        grads = torch.autograd.grad(output, list(named.values()), cotangent.to(output))
        found |= dict(zip(named, grads, strict=True))
    return found


def assert_within_budget(
    found: dict[str, Tensor], unpatched: dict[str, Tensor], exact: dict[str, Tensor], eps: float
) -> None:
    """At most twice the unpatched model's error against float64, plus one rounding."""
    assert list(found) == list(unpatched)
    for name, reference in exact.items():
        assert found[name].dtype == unpatched[name].dtype, name
        allowed = 2 * (unpatched[name].double() - reference).abs().max()
        allowed += eps * reference.abs().max()
        error = (found[name].double() - reference).abs().max()
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def compare(model: nn.Module, image: Tensor, impl: str = "auto", *, gradients: bool = True) -> Any:
    """Hold a patched copy against the model, output and gradients; the copy."""
    exact = run(copy.deepcopy(model).double(), image.double(), gradients)
    twin = patched_copy(model, impl)
    unpatched = run(model, image, gradients)
    eps = torch.finfo(image.dtype).eps
    assert_within_budget(run(twin, image, gradients), unpatched, exact, eps)
    return twin


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


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
    patch(aspp, "op")
    aspp(image)
    (options,) = fused_calls
    assert (options["rates"], options["fuse"], options["impl"]) == (list(RATES), "concat", "op")
    assert options["scale"].shape == options["shift"].shape == (3 * 16,)
    assert options["activation"] == "relu"


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
def test_forward_set_on_a_module_of_a_branch_runs(aspp, image, place):
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


def test_weights_and_statistics_that_change_after_the_patch_are_followed(aspp, image):
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
    model = torchvision.deeplabv3.deeplabv3_resnet101(
        weights=None, weights_backbone=None, num_classes=5, aux_loss=True
    )
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


# What it leaves as it was


def test_parameters_buffers_and_their_names_stay(aspp):
    before = dict(aspp.named_parameters()) | dict(aspp.named_buffers())
    checkpoint = copy.deepcopy(aspp.state_dict())
    patch(aspp)
    after = dict(aspp.named_parameters()) | dict(aspp.named_buffers())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert list(aspp.state_dict()) == list(checkpoint)
    assert str(aspp.load_state_dict(checkpoint)) == "<All keys matched successfully>"


def test_optimizer_that_held_the_parameters_trains_the_patched_model(aspp, image):
    twin = copy.deepcopy(aspp).train()
    steps = []
    for model in (aspp.train(), twin):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        steps.append(optimizer)
    patch(twin, "eager")
    for model, optimizer in zip((aspp, twin), steps, strict=True):
        for _ in range(2):
            optimizer.zero_grad()
            model(image).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(twin.state_dict(), aspp.state_dict())


def test_unpatching_restores_the_original_to_the_bit(aspp, image):
    attributes, kind, expected = dict(vars(aspp)), type(aspp), aspp(image)
    patch(aspp)
    assert type(aspp) is not kind
    assert unpatch(aspp) == 1
    assert type(aspp) is kind
    assert vars(aspp) == attributes
    assert torch.equal(aspp(image), expected)
    assert unpatch(aspp) == 0


def test_patching_again_changes_only_the_implementation(aspp, image, fused_calls):
    assert patch(aspp, "eager") == 1
    kind = type(aspp)
    assert patch(aspp, "op") == 1
    assert type(aspp) is kind
    aspp(image)
    assert fused_calls[0]["impl"] == "op"
    assert unpatch(aspp) == 1


def test_patched_pyramid_is_still_of_its_class(torchvision, aspp):
    patch(aspp)
    assert isinstance(aspp, torchvision.deeplabv3.ASPP)


@pytest.mark.parametrize("place", ["branch", "convolution", "norm", "relu"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_inside_a_branch_run(aspp, image, fused_calls, place, kind):
    twin = patched_copy(aspp)
    branch = twin.convs[2]
    module = {"branch": branch, "convolution": branch[0], "norm": branch[1], "relu": branch[2]}
    ran = []
    getattr(module[place], f"register_{kind}_hook")(lambda *_: ran.append(place))
    torch.testing.assert_close(run(twin, image), run(aspp, image))
    assert ran == [place]
    assert len(fused_calls[0]["rates"]) == (2 if place in ("branch", "convolution") else 3)


def test_pruning_that_computes_the_weight_before_each_call_is_followed(aspp, image):
    prune.random_unstructured(aspp.convs[1][0], "weight", amount=0.5)
    twin = copy.copy(aspp)
    assert patch(twin) == 1
    with torch.no_grad():
        aspp.convs[1][0].weight_orig.mul_(2)
    torch.testing.assert_close(twin(image), aspp(image))


# Copies, pickles, compilers


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_stay_patched_and_stand_alone(aspp, image, way):
    patch(aspp, "op")
    expected = aspp(image)
    if way == "deepcopy":
        twin = copy.deepcopy(aspp)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(aspp))
    else:
        file = io.BytesIO()
        torch.save(aspp, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert type(twin) is type(aspp)
    assert twin.multi_rate_impl == "op"
    nn.init.zeros_(aspp.convs[1][0].weight)
    assert torch.equal(twin(image), expected)
    assert unpatch(twin) == 1


def test_state_of_a_patched_model_loads_into_an_unpatched_one(torchvision, aspp, image):
    patch(aspp)
    file = io.BytesIO()
    torch.save(aspp.state_dict(), file)
    file.seek(0)
    fresh = torchvision.deeplabv3.ASPP(32, RATES, 16).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(fresh(image), aspp(image))


def test_functional_call_computes_with_the_tensors_given(aspp, image):
    patch(aspp)
    other = {name: torch.randn_like(value) for name, value in aspp.named_parameters()}
    found = torch.func.functional_call(aspp, other, image)
    unpatch(aspp)
    expected = torch.func.functional_call(aspp, other, image)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("impl", ["eager", "op"])
@MODES
@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_takes_it_whole(aspp, image, impl, train):
    patch(aspp.train(train).double(), impl)
    twin, image = copy.deepcopy(aspp), image.double()
    expected = run(aspp, image)
    found = run(torch.compile(twin, fullgraph=True, backend="aot_eager"), image)
    torch.testing.assert_close(list(found.values()), list(expected.values()))
    assert_same_state(twin, aspp)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_model_follows_a_later_patch(aspp, image, fused_calls):
    compiled = torch.compile(aspp, backend="eager")
    expected = compiled(image)
    assert patch(compiled) == 1
    torch.testing.assert_close(compiled(image), expected)
    assert len(fused_calls) == 1
    unpatch(compiled)
    assert torch.equal(compiled(image), expected)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("impl", "target"),
    [("eager", "aten.conv2d"), ("op", "kernels.multi_rate_atrous_conv2d")],
)
def test_export_keeps_batch_and_size_free(aspp, image, impl, target, strict):
    patch(aspp, impl)
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(aspp, (image,), dynamic_shapes=(sizes,), strict=strict)
    assert any(str(node.target).startswith(target) for node in program.graph.nodes)
    assert set(program.state_dict) == set(aspp.state_dict())
    other = torch.randn(3, 32, 9, 11)
    torch.testing.assert_close(program.module()(other), aspp(other))


# What it finds, and what it refuses


def test_model_without_a_pyramid_is_refused_with_what_was_looked_for():
    with pytest.raises(ValueError, match=r"no atrous pyramid in Linear: looked for ASPP of torchv"):
        patch(nn.Linear(1, 1))


def test_pyramid_with_a_forward_of_its_own_is_no_pyramid(torchvision):
    class Different(torchvision.deeplabv3.ASPP):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match="with that class's own forward"):
        patch(Different(4, RATES, 4))


def test_subclass_that_keeps_the_forward_is_patched(torchvision):
    class Named(torchvision.deeplabv3.ASPP):
        def rates(self) -> list[int]:
            return [branch[0].dilation[0] for branch in self.convs[1:4]]

    model = Named(4, RATES, 4)
    assert patch(model) == 1
    assert model.rates() == list(RATES)


def test_one_pyramid_that_cannot_be_fused_leaves_the_whole_model_unpatched(torchvision):
    separable = torchvision.deeplabv3.ASPP(4, RATES, 4)
    separable.convs[1][0] = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.Conv2d(4, 4, 1)
    )
    model = nn.Sequential(torchvision.deeplabv3.ASPP(4, RATES, 4), separable)
    with pytest.raises(ValueError, match=r"pyramid '1' has depthwise separable branches"):
        patch(model)
    assert {type(module) for module in model} == {torchvision.deeplabv3.ASPP}
    assert unpatch(model) == 0


def test_every_pyramid_of_a_model_is_patched(torchvision):
    model = nn.Sequential(
        torchvision.deeplabv3.ASPP(4, RATES, 4), torchvision.deeplabv3.ASPP(4, RATES[:2], 4)
    )
    assert patch(model) == 2
    assert unpatch(model) == 2


def test_pyramid_of_a_single_rate_is_refused(torchvision):
    with pytest.raises(ValueError, match="has 1 branches that can be fused, at least 2"):
        patch(torchvision.deeplabv3.ASPP(4, [6], 4))


def test_forward_set_on_the_pyramid_is_refused(aspp):
    aspp.forward = aspp.forward
    with pytest.raises(ValueError, match="a forward set on the instance"):
        patch(aspp)


def test_class_changed_after_the_patch_is_not_undone(aspp):
    patch(aspp)
    aspp.__class__ = type("Sharded", (type(aspp),), {})
    assert patch(aspp) == 1
    assert type(aspp).__name__ == "Sharded"
    with pytest.raises(ValueError, match="has become a Sharded since"):
        unpatch(aspp)


def test_bad_arguments_are_refused(aspp):
    with pytest.raises(ValueError, match=r"impl must be one of \['auto', .*'eager'.*not 'fast'"):
        patch(aspp, "fast")
    for function in (patch, unpatch):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not str"):
            function("model")
    assert unpatch(aspp) == 0


def test_import_needs_neither_package():
    program = "import sys, kernels.patch; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in process.stdout.split()}
    assert not loaded & {"torchvision", "segmentation_models_pytorch", "timm"}


# segmentation_models_pytorch


@MODES
@pytest.mark.parametrize(
    ("name", "options"),
    [("DeepLabV3", {}), ("DeepLabV3Plus", {"decoder_aspp_separable": False})],
)
def test_dense_pyramids_of_smp_compute_what_they_did(smp, fused_calls, name, options, train):
    model = getattr(smp, name)(
        "resnet18", encoder_weights=None, classes=5, decoder_channels=16, **options
    )
    randomise(model.decoder)
    model.train(train)
    image = torch.randn(2, 3, 64, 64)
    twin = compare(model, image, gradients=False)
    assert len(fused_calls) == 1
    assert_same_state(twin, model)


def test_separable_pyramid_of_smp_is_refused_with_the_way_out(smp):
    model = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=5)
    with pytest.raises(
        ValueError,
        match=r"'decoder\.aspp\.0' has depthwise separable.*decoder_aspp_separable=False",
    ):
        patch(model)
