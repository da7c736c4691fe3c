"""torch.compile(fullgraph=True) and torch.export take every kind of model whole, at any size."""

import copy

import pytest
import torch
from networks import tiny
from torch import nn

from crf import DenseCRF
from deeplab.model import build
from deeplab.model.heads import ASPP

SHAPES = [(2, 3, 33, 40), (2, 3, 41, 37), (3, 3, 64, 17)]


VGG = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("deeplab_v1_4x4", "deeplab_v1_msc_largefov", "deeplab_v2_vgg16")
]


@pytest.mark.parametrize("kind", ["plain", "msc", "v3", *VGG])
def test_the_whole_model_is_captured_once_for_all_sizes(kind):
    model = build(kind, num_classes=2).eval() if kind.startswith("deeplab") else tiny(kind)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for shape in SHAPES:
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x), model(x))
    assert len(graphs) == 1


@pytest.mark.parametrize(
    "kind", ["plain", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("msc", "v3"))]
)
def test_the_compiled_training_step_gives_the_gradients_of_the_model(kind):
    model = tiny(kind).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    compiled = copy.deepcopy(model)
    x = torch.randn(2, 3, 17, 33)

    def step(network):
        outputs = network.forward_scales(x) if kind == "msc" else (network(x),)
        sum(y.square().mean() for y in outputs).backward()

    torch._dynamo.reset()
    forward = torch.compile(
        lambda y: compiled.forward_scales(y) if kind == "msc" else (compiled(y),),
        fullgraph=True,
        dynamic=False,
        backend="aot_eager",
    )
    sum(y.square().mean() for y in forward(x)).backward()
    step(model)
    theirs = dict(model.named_parameters())
    for name, parameter in compiled.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=name)


@pytest.mark.parametrize("kind", ["plain", "msc", "v3"])
def test_an_exported_program_serves_any_batch_and_size(kind):
    model = tiny(kind)
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        program = torch.export.export(
            model, (torch.randn(2, 3, 33, 40),), dynamic_shapes={"x": dynamic}
        )
        for shape in [*SHAPES, (1, 3, 17, 320)]:
            x = torch.randn(shape)
            torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.slow
def test_the_default_compiler_takes_each_kind_of_layer_at_any_size():
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("inductor's C++ wants vector instructions that this processor does not have")
    model = tiny()
    # One stage of the four: the others add kernels to compile, and nothing new.
    model.backbone.layer2 = model.backbone.layer3 = model.backbone.layer4 = nn.Identity()
    model.head = ASPP(16, 3, (2, 3)).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for shape in SHAPES:
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_model_with_a_dense_crf_is_captured_whole():
    model = tiny(crf=DenseCRF(3, iterations=2))
    image = torch.rand(1, 3, 9, 12) * 255
    x = model.preprocess(image)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(x, image=image).softmax(1), model(x, image=image).softmax(1)
        )
