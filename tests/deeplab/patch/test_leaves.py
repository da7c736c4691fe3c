"""What deeplab.patch leaves as it was, what it refuses, and segmentation_models_pytorch."""

import copy
import io
import pickle

import pytest
import torch
from patched_models import MODES, RATES, assert_same_state, compare, patched_copy, randomise, run
from several_processes import Started
from torch import Tensor, nn
from torch.nn.utils import prune

from deeplab.patch import patch, unpatch

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


def test_optimizer_that_held_the_parameters_trains_the_patched_model(in_float64):
    aspp, image = in_float64
    twin = copy.deepcopy(aspp).train()
    optimizers = [
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (aspp.train(), twin)
    ]
    patch(twin, "reference")
    for model, optimizer in zip((aspp, twin), optimizers, strict=True):
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
    assert patch(aspp) == 1
    kind = type(aspp)
    assert patch(aspp, "reference") == 1
    assert type(aspp) is kind
    aspp(image)
    assert fused_calls[0]["impl"] == "reference"
    assert unpatch(aspp) == 1


def test_patched_pyramid_is_still_of_its_class(torchvision, aspp):
    patch(aspp)
    assert isinstance(aspp, torchvision.deeplabv3.ASPP)


@pytest.mark.processors
@pytest.mark.parametrize("place", ["branch", "convolution", "norm", "relu"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_inside_a_branch_run(in_float64, fused_calls, place, kind):
    aspp, image = in_float64
    twin = patched_copy(aspp)
    branch = twin.convs[2]
    module = {"branch": branch, "convolution": branch[0], "norm": branch[1], "relu": branch[2]}
    ran = []
    getattr(module[place], f"register_{kind}_hook")(lambda *_: ran.append(place))
    torch.testing.assert_close(run(twin, image), run(aspp, image))
    assert ran == [place]
    assert len(fused_calls[0]["rates"]) == (2 if place in ("branch", "convolution") else 3)


def test_pruning_that_computes_the_weight_before_each_call_is_followed(in_float64):
    aspp, image = in_float64
    prune.random_unstructured(aspp.convs[1][0], "weight", amount=0.5)
    twin = copy.copy(aspp)
    assert patch(twin) == 1
    with torch.no_grad():
        aspp.convs[1][0].weight_orig.mul_(2)
    torch.testing.assert_close(twin(image), aspp(image))


# Copies, pickles, compilers


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_stay_patched_and_stand_alone(aspp, image, way):
    patch(aspp, "reference")
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
    assert twin.multi_rate_impl == "reference"
    nn.init.zeros_(aspp.convs[1][0].weight)
    assert torch.equal(twin(image), expected)
    assert unpatch(twin) == 1


def test_state_of_a_patched_model_loads_into_an_unpatched_one(torchvision, in_float64):
    aspp, image = in_float64
    patch(aspp)
    file = io.BytesIO()
    torch.save(aspp.state_dict(), file)
    file.seek(0)
    fresh = torchvision.deeplabv3.ASPP(32, RATES, 16).eval().double()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(fresh(image), aspp(image))


def test_functional_call_computes_with_the_tensors_given(in_float64):
    aspp, image = in_float64
    patch(aspp)
    other = {name: torch.randn_like(value) for name, value in aspp.named_parameters()}
    found = torch.func.functional_call(aspp, other, image)
    unpatch(aspp)
    expected = torch.func.functional_call(aspp, other, image)
    torch.testing.assert_close(found, expected)


@MODES
@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_takes_it_whole(in_float64, train):
    aspp, image = in_float64
    patch(aspp.train(train))
    twin = copy.deepcopy(aspp)
    expected = run(aspp, image)
    found = run(torch.compile(twin, fullgraph=True, backend="aot_eager"), image)
    torch.testing.assert_close(list(found.values()), list(expected.values()))
    assert_same_state(twin, aspp)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_model_follows_a_later_patch(in_float64, fused_calls):
    aspp, image = in_float64
    compiled = torch.compile(aspp, backend="eager")
    expected = compiled(image)
    assert patch(compiled) == 1
    torch.testing.assert_close(compiled(image), expected)
    assert len(fused_calls) == 1
    unpatch(compiled)
    assert torch.equal(compiled(image), expected)


@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_batch_and_size_free(in_float64, strict):
    aspp, image = in_float64
    patch(aspp)
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(aspp, (image,), dynamic_shapes=(sizes,), strict=strict)
    assert set(program.state_dict) == set(aspp.state_dict())
    other = torch.randn(3, 32, 9, 11, dtype=image.dtype)
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
    depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    separable.convs[1][0] = nn.Sequential(depthwise, nn.Conv2d(4, 4, 1))
    model = nn.Sequential(torchvision.deeplabv3.ASPP(4, RATES, 4), separable)
    with pytest.raises(ValueError, match=r"pyramid '1' has depthwise separable branches"):
        patch(model)
    assert {type(module) for module in model} == {torchvision.deeplabv3.ASPP}
    assert unpatch(model) == 0


def test_every_pyramid_of_a_model_is_patched(torchvision):
    pyramids = (torchvision.deeplabv3.ASPP(4, rates, 4) for rates in (RATES, RATES[:2]))
    model = nn.Sequential(*pyramids)
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
    message = r"impl must be one of \['auto', .*'reference'\], not 'fast'"
    with pytest.raises(ValueError, match=message):
        patch(aspp, "fast")
    for function in (patch, unpatch):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not str"):
            function("model")
    assert unpatch(aspp) == 0


def test_import_needs_neither_package():
    out, _ = Started(("-c", "import sys, deeplab.patch; print(*sys.modules)")).communicate()
    loaded = {name.split(".")[0] for name in out.split()}
    assert "deeplab" in loaded
    assert not loaded & {"torchvision", "segmentation_models_pytorch", "timm"}


# segmentation_models_pytorch


@MODES
@pytest.mark.parametrize(
    ("name", "options"), [("DeepLabV3", {}), ("DeepLabV3Plus", {"decoder_aspp_separable": False})]
)
def test_dense_pyramids_of_smp_compute_what_they_did(smp, fused_calls, name, options, train):
    options |= {"encoder_weights": None, "classes": 5, "decoder_channels": 16}
    model = getattr(smp, name)("resnet18", **options)
    randomise(model.decoder)
    model.train(train)
    image = torch.randn(2, 3, 64, 64)
    twin = compare(model, image, gradients=False)
    assert len(fused_calls) == 1
    assert_same_state(twin, model)


def test_separable_pyramid_of_smp_is_refused_with_the_way_out(smp):
    model = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=5)
    message = r"'decoder\.aspp\.0' has depthwise separable.*decoder_aspp_separable=False"
    with pytest.raises(ValueError, match=message):
        patch(model)
