"""Pictures to labels, by deeplab.predict and as people put it together, for compare_model.py.

Weights are random: their classifiers are scaled so that the scores of a photograph have the spread
of a trained network's, which divides it into regions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import plain_deeplab
import torch
from crf_problem import (
    BILATERAL_WEIGHT,
    PEER_MODULE,
    SPATIAL_SIGMA,
    SPATIAL_WEIGHT,
    CRFProblem,
    dense_crf_2d,
    importable,
    installed,
    photograph,
)
from torch import Tensor, nn

import crf
import deeplab.model
from deeplab.export import export
from deeplab.model.multiscale import Resize
from deeplab.predict import Predictor
from deeplab.weights import load_weights

CLASSES, SPREAD = 21, 3.0
SIGMAS, ITERATIONS = (49, 5), 10  # of the CRF, sigma_xy and sigma_rgb

Images = npt.NDArray[np.uint8]  # [B, H, W, 3]
Labels = npt.NDArray[np.uint8]  # [B, H, W]
Body = Literal["resnet50", "resnet101"]


@dataclass(frozen=True)
class Task:
    """So many pictures of one size through a network on this body."""

    body: Body
    side: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.body} {self.side}x{self.side} batch {self.batch}"

    @property
    def images(self) -> Images:
        """A photograph, and what it is when shifted."""
        image, _ = photograph(self.side, self.side)
        return np.stack([np.roll(image, 16 * i, axis=1) for i in range(self.batch)])


@dataclass(frozen=True)
class Pipeline:
    """Pictures to labels in two steps.

    Attributes:
        logits: images -> `[B, C, H, W]`.
        refined: logits and images -> labels, through a CRF; None where there is none to be had.
        labels: the whole, as a user calls it.
    """

    logits: Callable[[Images], Tensor]
    refined: Callable[[Tensor, Images], Labels] | None
    labels: Callable[[Images], Labels] | None


@cache
def our_network(body: Body, resize: Resize = "caffe") -> deeplab.model.DeepLab:
    """DeepLab v2 with random weights and scores as spread as a trained network's; how it resizes
    scores, "torch" as other people's programs do."""
    torch.manual_seed(0)
    builders = {
        "resnet50": deeplab.model.deeplab_v2_resnet50,
        "resnet101": deeplab.model.deeplab_v2_resnet101,
    }
    model = builders[body](num_classes=CLASSES, resize=resize).eval()
    image, _ = photograph(161, 161)
    with torch.no_grad():
        scores = model(model.preprocess(image), upsample=False)
        rows = model.head.get_parameter("classifier.weight").unflatten(0, (-1, CLASSES))
        bias = model.head.get_parameter("classifier.bias").unflatten(0, (-1, CLASSES))
        _spread(scores, rows.transpose(0, 1), bias.transpose(0, 1))
    return model


@cache
def plain(body: Body) -> plain_deeplab.PlainDeepLab:
    """The plain network with the weights of ours."""
    return plain_deeplab.same_weights(our_network(body), CLASSES, plain_deeplab.BLOCKS[body])


def our_pipeline(body: Body) -> Pipeline:
    """As a user of deeplab calls it."""
    model = our_network(body)
    layer = crf.DenseCRF(
        CLASSES,
        gaussian=crf.Gaussian(SPATIAL_WEIGHT, SPATIAL_SIGMA),
        bilateral=crf.Bilateral(BILATERAL_WEIGHT, *SIGMAS),
        iterations=ITERATIONS,
    )
    predictor, alone = Predictor(model, layer, tile=None), Predictor(model, tile=None)

    @torch.no_grad()
    def refined(logits: Tensor, images: Images) -> Labels:
        levels = model.preprocessing.levels(as_batch(images)).float()
        return _most_probable(layer(logits, levels))

    return Pipeline(
        lambda images: alone.output(list(images)).logits, refined, partial(labels_of, predictor)
    )


def plain_pipeline(task: Task) -> Pipeline:
    """The plain network in PyTorch, with pydensecrf2 behind it."""
    network = plain(task.body)

    @torch.no_grad()
    def logits(images: Images) -> Tensor:
        scores = network(plain_deeplab.preprocess(as_batch(images)))
        return plain_deeplab.upsample(scores, images.shape[1:3])

    return by_hand(logits, task)


def by_hand(logits: Callable[[Images], Tensor], task: Task) -> Pipeline:
    """What people write around a network: softmax, energies in NumPy, pydensecrf2 a picture."""
    library = installed(PEER_MODULE)
    problem = CRFProblem(task.side, task.side, CLASSES, *SIGMAS, ITERATIONS)
    if library is None:
        return Pipeline(logits, None, None)

    def refined(given: Tensor, images: Images) -> Labels:
        probabilities = given.softmax(1).flatten(2).numpy()
        labels = []
        for each, image in zip(-np.log(np.clip(probabilities, 1e-10, 1)), images, strict=True):
            dense = dense_crf_2d(library, problem, np.ascontiguousarray(each), image)
            marginals = np.asarray(dense.inference(ITERATIONS))
            labels.append(marginals.argmax(0).reshape(image.shape[:2]).astype(np.uint8))
        return np.stack(labels)

    return Pipeline(logits, refined, lambda images: refined(logits(images), images))


@cache
def _onnx_session(body: Body) -> Any:
    """Our network, exported, in onnxruntime on as many threads as torch has."""
    runtime = importable("onnxruntime")
    assert runtime is not None
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:
        path = export(our_network(body), Path(folder) / "network.onnx").path
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def onnx_logits(body: Body, images: Images) -> Tensor:
    x = plain_deeplab.preprocess(as_batch(images)).contiguous().numpy()
    return torch.from_numpy(_onnx_session(body).run(["logits"], {"x": x})[0])


def torchvision_network(segmentation: Any, body: Body) -> nn.Module:
    """torchvision's DeepLab v3 with random weights, as spread as ours."""
    torch.manual_seed(0)
    build = getattr(segmentation, f"deeplabv3_{body}")
    network: nn.Module = build(weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    image, _ = photograph(161, 161)
    last = network.get_submodule("classifier.4")
    with torch.no_grad():
        scores = network(_whitened(image[None]))["out"]
        _spread(scores, last.get_parameter("weight"), last.get_parameter("bias")[:, None])
    return network


def our_v3(body: Body, theirs: nn.Module | None) -> deeplab.model.DeepLab:
    builders = {
        "resnet50": deeplab.model.deeplab_v3_resnet50,
        "resnet101": deeplab.model.deeplab_v3_resnet101,
    }
    ours = builders[body](num_classes=CLASSES).eval()
    if theirs is not None:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "theirs.pth"
            torch.save(theirs.state_dict(), file)
            load_weights(ours, file)
    return ours


@torch.no_grad()
def torchvision_labels(network: nn.Module, images: Images) -> Labels:
    return _most_probable(network(_whitened(images))["out"])


def _whitened(images: Images) -> Tensor:
    """As the transforms of torchvision's weights give it."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (as_batch(images).float() / 255 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)


def labels_of(predictor: Predictor, images: Images) -> Labels:
    return np.stack([each.labels for each in predictor(list(images), probabilities=False)])


def _spread(scores: Tensor, rows: Tensor, bias: Tensor) -> None:
    """Scale a classifier in place so that each class of `scores` `[B, C, h, w]`, which it gave,
    has the mean 0 and the deviation SPREAD; rows `[C, ...]` and bias `[C, branches]`."""
    factor = SPREAD / scores.std((0, 2, 3))
    rows *= factor.view(-1, *[1] * (rows.ndim - 1))
    bias *= factor[:, None]
    bias[:, 0] -= factor * scores.mean((0, 2, 3))


def as_batch(images: Images) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _most_probable(scores: Tensor) -> Labels:
    return scores.argmax(1).byte().numpy()
