"""Pictures to predictions: a model, a CRF, and how they are used, as one object.

A picture goes through network and CRF whole, or in overlapping tiles (`tiles.py`): each tile as if
it were a picture, so that the CRF works on overlapping parts too, and what is blended are the final
probabilities. But the CRF counts positions in the whole picture: with the vertices of its lattices
elsewhere in each tile, it would approximate each tile otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from crf import DenseCRF
from deeplab.crf_settings import AllBandsCRF
from deeplab.errors import InputError
from deeplab.model import DeepLab
from deeplab.model.preprocess import Bands
from deeplab.precision import Precision, chosen
from deeplab.predict.folding import FoldedNetwork
from deeplab.predict.labels import most_probable
from deeplab.predict.limits import enough_memory, fits
from deeplab.predict.tiles import Part, Tiling, blended, room
from deeplab.predict.views import as_batch, check_scales, network_scores

CRF = Callable[[Tensor, Tensor], Tensor]
Tile = int | Literal["auto"] | None
TILE, OVERLAP = 1024, 384  # pixels


@dataclass(frozen=True)
class Prediction:
    """What the model says about one picture.

    Attributes:
        labels: `[H, W]`, the most probable class of each pixel, or of two the one that a threshold
            says; uint8, or int64 above 256 classes. Of a multi-label model masks `[C, H, W]`, uint8
            of 0 and 1.
        probabilities: float32 `[C, H, W]`, summing to 1 over the classes unless the model is
            multi-label; a CRF's marginals if one was used. `[0, H, W]` where only labels were
            wanted; of a picture in tiles in a temporary file where they take more than 1 GiB.
    """

    labels: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def of(
        cls, probabilities: np.ndarray, threshold: float | None = None, multilabel: bool = False
    ) -> Prediction:
        """The prediction with these probabilities `[C, H, W]`; threshold: as of `Predictor`."""
        found = decided(torch.from_numpy(probabilities), threshold, multilabel)
        return cls(found, probabilities)


@dataclass(frozen=True)
class Output:
    """What is known of pictures, on the model's device.

    Attributes:
        model: whose they are, and which says what makes probabilities of logits.
        logits: the network's, `[B, C, H, W]`.
        marginals: the CRF's, `[B, C, H, W]`, or None without one.
    """

    model: DeepLab
    logits: Tensor
    marginals: Tensor | None

    @property
    def alone(self) -> Tensor:
        """The network's probabilities."""
        return self.model.probabilities(self.logits)

    @property
    def probabilities(self) -> Tensor:
        """The CRF's marginals, or without one the network's probabilities."""
        return self.alone if self.marginals is None else self.marginals


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model and how it is used; called with pictures, it gives predictions. It can be pickled.

        predictor = Predictor(model, crf, scales=(0.75, 1.0), flip=True)
        predictor(image).labels                       # one picture [H, W, in_channels]
        [p.labels for p in predictor(images)]         # several, of any sizes, or [B, H, W, C]

    Args:
        model: in any mode. One that ends in its own CRF layer refines in any case.
        crf: refines the network's scores on the picture, `crf(logits [B, C, H, W], levels
            [B, 3, H, W] in 0-255)` -> marginals `[B, C, H, W]`, such as `crf.DenseCRF`; None leaves
            the scores as they are.
        scales, flip: the views whose probabilities are averaged, see `network_scores`.
        precision: what the network computes in: torch.float32 (the dtype of its weights),
            torch.bfloat16 or torch.float16, see `network_scores`, or "auto": bfloat16 where the
            device computes in it, float32 elsewhere. What follows the network is float32. At
            least 99.5% of labels were those of float32 (docs/figures.md).
        fold: on a CPU compute with a copy of the network whose batch normalisations are folded
            into convolutions, see `deeplab.predict.folding`: its scores are the model's up to
            rounding. The copy follows changes of the model; a model with
            hooks, or compiled by itself, is used as it is.
        compile: that copy by `torch.compile`, which needs a C++ compiler and takes as long as many
            pictures: at the first picture, and a few times more at sizes that are rounded otherwise
            on their way through the strides. It helps small networks a little, and ResNet-101, all
            of whose time goes into oneDNN's products, not at all.
        device: where model and CRF are moved to, in place; None leaves them.
        threshold: of two classes, from which probability on a pixel is the second; None takes the
            more probable. Of a multi-label model from which probability on a class holds; None:
            0.5.
        bands: which the CRF sees of a picture, see `as_levels`.
        tile: pixels a side, at most, of the tiles that a larger picture is cut into, see
            `deeplab.predict.tiles`; None takes each picture whole; "auto" takes it whole unless
            twice the least memory that it needs is more than what is free, and else in tiles of
            1024. Each tile is a picture of its own to network and CRF: a model that looks at the
            whole picture (the image pooling of DeepLab v3) sees less of it in a tile.
        overlap: pixels that neighbouring tiles share, at least; up to half a tile. The wider the
            kernels of a CRF, the more it needs.
        at_once: how many threads call it at a time, which share the memory that is free.

    Raises ValueError if both the model and the call have a CRF, or the call has one and the model
    is multi-label, for `compile` without `fold` or with a model that is not on a CPU, for a scale
    that is not between 0.1 and 4, a threshold that is not between 0 and 1 or of a model of one
    label and other than two classes, another precision, `at_once` below 1, and tiles as `Tiling.of`
    does.
    """

    model: DeepLab
    crf: CRF | None = None
    _: KW_ONLY
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    precision: Precision = torch.float32
    fold: bool = True
    compile: bool = False
    device: str | torch.device | None = None
    threshold: float | None = None
    bands: Bands = None
    tile: Tile = "auto"
    overlap: int = OVERLAP
    at_once: int = 1
    _folded: FoldedNetwork = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.crf is not None and self.model.crf is not None:
            raise ValueError(
                "crf: the model ends in a CRF layer of its own; pass crf=None to use that"
            )
        if self.model.multilabel and self.layer is not None:
            raise ValueError(
                "crf must be None with a multi-label model: a CRF gives a pixel one class"
            )
        check_scales(self.scales)
        if self.at_once < 1:
            raise ValueError(f"at_once must be 1 or more, not {self.at_once}")
        check_threshold(self.threshold, self.model)
        chosen(self.precision, torch.device("cpu"))
        if self.tile is not None:
            self._tiling()
        if self.device is not None:
            self.model.to(self.device)
            if isinstance(self.crf, nn.Module):
                self.crf.to(self.device)
        if self.compile and not (self.fold and self._on_cpu):
            raise ValueError("compile must be False without fold, or with a model not on a CPU")
        object.__setattr__(self, "_folded", FoldedNetwork(self.model, self.compile))

    @property
    def layer(self) -> CRF | None:
        """What refines: the CRF given, or the model's own."""
        return self.model.crf if self.crf is None else self.crf

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in, on the device where the model is now."""
        return chosen(self.precision, next(self.model.parameters()).device)

    @property
    def _on_cpu(self) -> bool:
        return next(self.model.parameters()).device.type == "cpu"

    def in_tiles(self, size: Sequence[int]) -> bool:
        """Whether a picture of `size` (height, width, ...) is cut into tiles, by the memory now."""
        if self.tile is None or max(size[:2]) <= self._tiling().tile:
            return False
        refines = self.layer is not None
        whole = self.tile == "auto" and fits(
            self.model, size, self.scales, self.flip, refines, self.at_once
        )
        return not whole

    @overload
    def __call__(self, images: np.ndarray, *, probabilities: bool = True) -> Prediction: ...

    @overload
    def __call__(
        self, images: Sequence[np.ndarray], *, probabilities: bool = True
    ) -> list[Prediction]: ...

    def __call__(
        self, images: np.ndarray | Sequence[np.ndarray], *, probabilities: bool = True
    ) -> Prediction | list[Prediction]:
        """Segment a picture, or several.

        images: RGB, uint8 `[H, W, 3]`, or `[H, W, in_channels]` as the model takes it, of any
            size; or a sequence of them, which an array `[B, H, W, in_channels]` is too.
        probabilities: False keeps labels only, which is less by 4 bytes for each class and pixel.
        Returns the prediction of the picture, or a list of one for each.

        Pictures of one size and dtype go through the network together, as many as are given; their
        predictions are those of each alone up to the rounding of float32 (kernels may sum in
        another order in a batch), since nothing in evaluation mode looks from one to another.
        Pictures in tiles go one by one. Several threads may call it at once if the model is in
        evaluation mode and has no CRF layer of its own; else it is changed, and back, meanwhile.

        Raises InputError if the model gives NaN or Inf, or if the memory runs out (where the
        system tells how much is free, before any work); ValueError for bands that are not there, or
        (from `model.preprocess`) if a picture is not RGB `[H, W, 3]`, or of the model's bands.
        """
        if isinstance(images, np.ndarray) and images.ndim != 4:
            return self._predictions([images], probabilities)[0]
        found: dict[int, Prediction] = {}
        for group in _of_one_kind(list(images)):
            predictions = self._predictions([images[i] for i in group], probabilities)
            found |= zip(group, predictions, strict=True)
        return [found[i] for i in range(len(images))]

    def labels(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The labels of one picture before and after the CRF, the same without one.

        Raises as calling the predictor does, but FloatingPointError for NaN and Inf.
        """
        refines = self.layer is not None
        if not self.in_tiles(image.shape):
            output = self.output([image])
            # The largest of the probabilities is that of the logits.
            largest = self.threshold is None and not self.model.multilabel
            before = self._decided(output.logits[0] if largest else output.alone[0])
            return before, self._decided(output.probabilities[0]) if refines else before

        def both(output: Output) -> Tensor:
            return torch.cat([output.alone, output.probabilities], 1) if refines else output.alone

        found = [_Whole(image.shape), _Whole(image.shape)]
        for part in self._parts(image, both):
            for whole, values in zip(found, part.values.chunk(1 + refines), strict=False):
                whole.put(part, self._decided(values))
        before = found[0].values
        return before, found[1].values if refines else before

    def output(self, images: Sequence[np.ndarray], origin: tuple[int, int] | None = None) -> Output:
        """Logits and marginals of pictures of one size, each whole.

        origin: (y, x) of their first pixel, where they are parts of larger ones.

        Raises as calling the predictor does, but FloatingPointError for NaN and Inf.
        """
        layer, first = self.layer, images[0]
        with (
            torch.no_grad(),
            enough_memory(
                self.model, first.shape[:2], self.scales, self.flip, layer is not None, len(images)
            ),
        ):
            batch = self._together(images)
            network = self._folded.current() if self.fold and self._on_cpu else None
            if self.compile and network is None:
                raise ValueError(
                    "compile must be False with a model that has hooks or is not on a CPU"
                )
            logits = network_scores(self.model, batch, self.scales, self.flip, self.dtype, network)
            if not bool(torch.isfinite(logits).all()):
                raise FloatingPointError("the network's output has NaN or Inf")
            if layer is None:
                return Output(self.model, logits, None)
            pictures = batch if isinstance(batch, Tensor) else as_batch(batch)
            levels = self.model.preprocessing.levels(pictures, self.bands)
            return Output(self.model, logits, _refined(layer, logits, levels.to(logits), origin))

    def _together(self, images: Sequence[np.ndarray]) -> np.ndarray | Tensor:
        """What `model.preprocess` takes of pictures of one size: the picture, or a batch."""
        if len(images) == 1:
            return images[0]
        if images[0].ndim != 3:
            self.model.preprocess(images[0])  # says what is wrong with it
        return torch.cat([as_batch(image) for image in images])

    def _predictions(self, images: Sequence[np.ndarray], probabilities: bool) -> list[Prediction]:
        try:
            if self.in_tiles(images[0].shape):
                return [self._of_tiles(image, probabilities) for image in images]
            found = self.output(images).probabilities.float()
        except FloatingPointError as error:
            narrow = " (or float16 is too narrow for it: try bfloat16)"
            raise InputError(
                f"{error}; its weights are damaged or come from a training that diverged: load "
                "other weights, or train with a lower learning rate"
                f"{narrow if self.dtype == torch.float16 else ''}"
            ) from error
        if not probabilities:
            return [Prediction(self._decided(each), _none(each.shape)) for each in found]
        multilabel = self.model.multilabel
        return [Prediction.of(each, self.threshold, multilabel) for each in found.cpu().numpy()]

    def _of_tiles(self, image: np.ndarray, probabilities: bool) -> Prediction:
        labels, kept = _Whole(image.shape), _Whole(image.shape)
        for part in self._parts(image, lambda output: output.probabilities):
            labels.put(part, self._decided(part.values))
            if probabilities:
                kept.put(part, part.values.numpy())
        return Prediction(labels.values, kept.values if probabilities else _none(image.shape[:2]))

    def _decided(self, probabilities: Tensor) -> np.ndarray:
        return decided(probabilities, self.threshold, self.model.multilabel)

    def _parts(self, image: np.ndarray, values: Callable[[Output], Tensor]) -> Iterator[Part]:
        """The blend of `values` `[1, C, h, w]` of the output for all tiles."""
        tiling = self._tiling()
        rows, columns = (tiling.spans(length) for length in image.shape[:2])

        def of_tile(y: slice, x: slice) -> Tensor:
            return values(self.output([image[y, x]], (y.start, x.start)))[0]

        yield from blended(rows, columns, of_tile)

    def _tiling(self) -> Tiling:
        tile = TILE if self.tile == "auto" or self.tile is None else self.tile
        return Tiling.of(self.model, self.scales, tile, self.overlap)


def _refined(layer: CRF, logits: Tensor, levels: Tensor, origin: tuple[int, int] | None) -> Tensor:
    """What a CRF makes of logits; one of somebody's own knows nothing of an origin."""
    if origin is not None and isinstance(layer, DenseCRF | AllBandsCRF):
        marginals: Tensor = layer(logits, levels, origin=origin)
        return marginals
    return layer(logits, levels)


class _Whole:
    """What is put together of parts: an array `[..., H, W]`, made when its first part is known."""

    def __init__(self, size: Sequence[int]) -> None:
        self.height, self.width = size[:2]
        self.values = np.empty(0)

    def put(self, part: Part, values: np.ndarray) -> None:
        """The values `[..., rows, columns]` of a part."""
        if not self.values.size:
            self.values = room((*values.shape[:-2], self.height, self.width), values.dtype)
        self.values[..., part.rows, part.columns] = values


def _none(shape: Sequence[int]) -> np.ndarray:
    """The probabilities of no class for a picture of shape `[..., H, W]`."""
    return np.empty((0, *shape[-2:]), np.float32)


def predict(
    model: DeepLab,
    image: np.ndarray,
    crf: CRF | None = None,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    bands: Bands = None,
    threshold: float | None = None,
) -> Prediction:
    """Segment one picture, whole, on the model's device: `Predictor(model, crf, ...)(image)`.

    The network is not folded: for one picture the copy takes longer than it saves.
    Arguments and errors are the predictor's.
    """
    predictor = Predictor(
        model,
        crf,
        scales=scales,
        flip=flip,
        fold=False,
        bands=bands,
        threshold=threshold,
        tile=None,
    )
    return predictor(image)


def check_threshold(threshold: float | None, model: DeepLab) -> None:
    """ValueError for a threshold that is not between 0 and 1, or where the model has no use for it.

    It is for models of two classes, and for multi-label ones.
    """
    if threshold is None:
        return
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be a number between 0 and 1, not {threshold}")
    if model.num_classes != 2 and not model.multilabel:
        raise ValueError(
            f"threshold must be left out with {model.num_classes} classes; it is for two"
        )


def decided(probabilities: Tensor, threshold: float | None, multilabel: bool = False) -> np.ndarray:
    """Labels `[H, W]` of probabilities `[C, H, W]`, or masks `[C, H, W]`.

    Without a threshold labels are those of logits too.
    """
    if multilabel or threshold is not None:
        likely = probabilities if multilabel else probabilities[1]
        return (likely >= (0.5 if threshold is None else threshold)).to(torch.uint8).cpu().numpy()
    if len(probabilities) > 256:
        return probabilities.argmax(dim=0).cpu().numpy()
    if probabilities.device.type == "cpu":
        return most_probable(probabilities.float().numpy())
    return probabilities.argmax(dim=0).to(torch.uint8).cpu().numpy()


def _of_one_kind(images: Sequence[np.ndarray]) -> Iterator[list[int]]:
    """The indices of pictures of one shape and dtype, in the order of the first of each kind."""
    kinds: dict[object, list[int]] = {}
    for index, image in enumerate(images):
        kinds.setdefault((image.shape, image.dtype), []).append(index)
    yield from kinds.values()
