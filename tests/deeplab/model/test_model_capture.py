"""torch.compile(fullgraph=True) takes every kind of model whole, at any size.

tests/deeplab/test_export.py holds the same of torch.export.
"""

import copy

import pytest
import torch
from networks import tiny
from torch import nn

from crf import DenseCRF
from deeplab.model import build
from deeplab.model.heads import MultiRateConv2d

SHAPES = [(2, 3, 33, 40), (2, 3, 41, 37), (3, 3, 64, 17)]
KINDS = {"plain": 4, "msc": 2, "v3": 2}  # stages: the deeper ones are looked at once
VGG = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("deeplab_v1_4x4", "deeplab_v1_msc_largefov", "deeplab_v2_vgg16")
]


@pytest.mark.parametrize("kind", [*KINDS, *VGG])
def test_the_whole_model_is_captured_once_for_all_sizes(kind):
    if kind in KINDS:
        model = tiny(kind, stages=KINDS[kind])
    else:
        with torch.device("meta"):
            model = build(kind, num_classes=2).eval()
        fill_narrowed(model)
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


def fill_narrowed(model):
    """Weights for an eighth of the channels: to compute at the full width takes seconds."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | MultiRateConv2d):
            rows, columns, *kernel = (n if n < 64 else n // 8 for n in module.weight.shape)
            fan_in = columns * kernel[0] * kernel[1]
            module.weight = nn.Parameter(torch.randn(rows, columns, *kernel) * (2 / fan_in) ** 0.5)
            module.bias = nn.Parameter(torch.randn(rows))


@pytest.mark.parametrize(
    "kind", ["plain", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("msc", "v3"))]
)
def test_the_compiled_training_step_gives_the_gradients_of_the_model(kind):
    model = tiny(kind, stages=KINDS[kind]).train()
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


@pytest.mark.slow
def test_the_default_compiler_takes_each_kind_of_layer_at_any_size():
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("inductor's C++ wants vector instructions that this processor does not have")
    model = tiny(stages=1)  # more of them add kernels to compile, and nothing new
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for shape in SHAPES:
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_model_with_a_dense_crf_is_captured_whole():
    model = tiny(stages=1, crf=DenseCRF(3, iterations=2))
    image = torch.rand(1, 3, 9, 12) * 255
    x = model.preprocess(image)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(x, image=image).softmax(1), model(x, image=image).softmax(1)
        )
