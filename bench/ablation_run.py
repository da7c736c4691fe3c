"""How a row of the ablation is made: trained or tuned, scored, and kept.

A row is made in pieces: training goes on from its last state, tuning from its last result. Where a
row starts from the network of `pretrained`, that is the one of the same seed, as it was scored.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_pictures import Shown
from ablation_records import Records, curve_of, train_seconds
from ablation_rows import Plan, Row, config_of

from deeplab.crf_settings import CRFSettings
from deeplab.data.datasets import open_dataset
from deeplab.data.datasets.base import PairedFiles
from deeplab.data.outputs import NamedPalette, full_palette, write_arrays
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import Evaluation, evaluate
from deeplab.evaluation.logit_cache import LogitCache
from deeplab.evaluation.tune_crf import Log, Space, Tuner, log_identity
from deeplab.model import DeepLab
from deeplab.training import TrainConfig, train
from deeplab.training.checkpoint import Files
from deeplab.training.recipe import Settings
from deeplab.weights import load_model, save_weights

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # of the trimap's bands
HELD_OUT = 10  # one of so many pictures of a sequence is kept from training
# Wider than the papers' 3 to 6, 30 to 100 and 3 to 6 pixels and levels: scores at stride 16 of half
# a picture are coarser, and CamVid's pictures noisier.
SPACE = Space((2.0, 4.0, 8.0), (10.0, 20.0, 40.0, 80.0), (4.0, 8.0, 16.0))
ROUNDS, FOLDS = 1, 3  # finer searches, and parts of the cross-validation


# The network of a row, the CRF behind it (None without), and what the record tells of the making.
Made = tuple[DeepLab, CRFSettings | None, dict[str, Any]]


class Stopped(Exception):
    """A signal stopped the training of a row; its state is on disk."""

    def __init__(self, signal: int) -> None:
        super().__init__()
        self.signal = signal


@dataclass(frozen=True)
class Data:
    """The pictures: to learn from, to tune the CRF on, to score."""

    learn: PairedFiles
    tune: PairedFiles
    score: PairedFiles

    @classmethod
    def of(cls, root: Path, config: TrainConfig) -> Data:
        """Those of CamVid's layout in a folder; InputError where there are none, or too few."""
        train = open_dataset(config.data.name, root, config.data.train)
        score = open_dataset(config.data.name, root, config.data.validation)
        assert isinstance(train, PairedFiles)
        assert isinstance(score, PairedFiles)
        kept = held_out(train.names)
        if len(kept) < FOLDS:
            raise InputError(
                f"{root}: too few pictures: {len(kept)} of {len(train)} are kept to tune the CRF, "
                f"which takes at least {FOLDS}"
            )
        rest = [i for i in range(len(train)) if i not in kept]
        return cls(_part(train, rest, "learned"), _part(train, kept, "kept"), score)


def held_out(names: Sequence[str]) -> list[int]:
    """The last tenth of each sequence, rounded up, which has few neighbours in time that are
    learned. A sequence is what stands before the first underscore of a name."""
    sequences: dict[str, list[int]] = {}
    for index, name in sorted(enumerate(names), key=lambda pair: pair[1]):
        sequences.setdefault(name.partition("_")[0], []).append(index)
    tenths = ((s, len(s) - math.ceil(len(s) / HELD_OUT)) for s in sequences.values())
    return sorted(i for sequence, first in tenths for i in sequence[first:])


def _part(data: PairedFiles, indices: Sequence[int], what: str) -> PairedFiles:
    pairs = [data.pairs[i] for i in indices]
    return PairedFiles(f"{data.name}, {what}", pairs, data.classes, data.palette, data.reader)


@dataclass(frozen=True)
class Ablation:
    """What is made, from what, and where it goes.

    given: settings of the command line for every row; root: the data; weights: of ImageNet; work:
    the folder of weights and states; records: that of what is kept.
    """

    plan: Plan
    given: Settings
    root: Path
    weights: str
    work: Path
    records: Records
    shown: tuple[Shown, ...]
    data: Data

    def config(self, row: str, seed: int) -> TrainConfig:
        """The recipe of a row; of those without training that of the network they are on."""
        further = self.plan.rows()[row].kind == "further"
        weights = str(self.scored("pretrained", seed)) if further else self.weights
        return config_of(self.plan, row, seed, self.given, self.root, weights)

    def scored(self, row: str, seed: int) -> Path:
        """The weights of a row as they were scored."""
        return self.work / f"{row}-{seed}-scored.safetensors"

    def make(self, row: Row, seed: int) -> None:
        """Train or tune what the row has, score it, and write the record."""
        print(f"{row.name}, seed {seed}: {row.title}", file=sys.stderr)
        config = self.config(row.name, seed)
        model, settings, found = self.made(row, seed, config)
        start = time.perf_counter()
        result = self.score(model, settings, config, self.work / f"{row.name}-{seed}.npz")
        found["evaluation"] = {"seconds": round(time.perf_counter() - start, 1)}
        found["crf"] = None if settings is None else settings.as_dict()
        self.keep(model, settings, self.scored(row.name, seed))
        self.records.write(row, seed, config, result, found)
        self.forget(row, seed)

    def made(self, row: Row, seed: int, config: TrainConfig) -> Made:
        if row.kind == "train":
            return self.trained(row, seed, config, None)
        network = self.network(row, seed)
        if row.kind == "further":
            return self.trained(row, seed, config, self.settings_of("crf", seed))
        if row.name == "crf":
            return self.tuned(network, seed, config)
        return network, CRFSettings(), {}

    def trained(self, row: Row, seed: int, config: TrainConfig, start: CRFSettings | None) -> Made:
        """The network after its last step, and the CRF behind it.

        start: the CRF, for whole pictures, None for none. One that learns does so on pictures of
        the size that the network sees, and is brought to that size and back.
        """
        files = Files(self.work / f"{row.name}-{seed}.safetensors")
        scale = config.validation_scales[0]
        crf = {"crf": start.enlarged(scale).as_dict()} if start and config.crf else {}
        result = train(
            config,
            files.best,
            dataset=self.data.learn,
            validation=self.data.score,
            metadata=crf,
            resume=files.state.exists(),
            overwrite=not files.state.exists(),  # what a run left that was killed before its state
        )
        if result.interrupted:
            raise Stopped(result.signal)
        model, layer = result.model, result.model.crf
        model.crf = None
        settings = start if layer is None else CRFSettings.of(layer).enlarged(1 / scale)
        told = {"seconds": train_seconds(files.log, config), "curve": curve_of(files.log, config)}
        return model, settings, {"training": told}

    def network(self, row: Row, seed: int) -> DeepLab:
        """The network of `pretrained`; InputError where it is not in the folder."""
        path = self.scored("pretrained", seed)
        if not path.is_file():
            raise InputError(
                f"{path}: no such file, and {row.name} starts from it; make pretrained with this "
                f"seed first, here (a record alone is not enough: remove {self.records.folder}/"
                f"pretrained-{seed}.json to make it anew)"
            )
        return load_model(path).to("cuda" if torch.cuda.is_available() else "cpu")

    def settings_of(self, row: str, seed: int) -> CRFSettings:
        """The CRF's settings in the record of a row; InputError where there is none."""
        record = self.records.read(row, seed)
        if record is None:
            raise InputError(f"{row}, seed {seed}: no record; make that row first")
        return CRFSettings().changed(record["crf"])

    def tuned(self, model: DeepLab, seed: int, config: TrainConfig) -> Made:
        """The network, and the best CRF on the pictures that training left out."""
        start = time.perf_counter()
        data, classes = self.data.tune, self.data.tune.classes
        palette = NamedPalette(full_palette(data.palette), classes)
        folder = self.work / f"crf-{seed}-logits"
        scale = config.validation_scales[0]
        logits = LogitCache(folder, model, data, range(len(data)), data.name, palette, scale)
        for _ in logits.fill():
            pass
        fixed = CRFSettings()
        about = log_identity(data.name, logits.identity(), fixed, "grid", SPACE, folds=FOLDS)
        log = Log(self.work / f"crf-{seed}.jsonl", about)
        device = next(model.parameters()).device
        tuner = Tuner(logits, len(classes), fixed, log, folds=FOLDS, device=device)
        for _ in tuner.grid(SPACE, ROUNDS):
            pass
        tuning = tuner.tuning()
        told = {
            "pictures": len(data),
            "settings": len(log.results),
            "seconds": round(time.perf_counter() - start, 1),
            "miou_without": tuning.alone.miou(),
            "miou": tuning.best.miou(),
            "miou_held_out": tuning.held_out(),
            "at_an_end": SPACE.on_edge(tuning.best.point),
        }
        return model, tuner.settings(tuning.best.point), {"tuning": told}

    def score(
        self, model: DeepLab, settings: CRFSettings | None, config: TrainConfig, pictures: Path
    ) -> Evaluation:
        """Scores on val; the labels of the pictures that are shown go into a file."""
        data, kept = self.data.score, {}
        indices = {one.index for one in self.shown}

        def keep(index: int, labels: np.ndarray) -> None:
            if index in indices:
                kept[str(index)] = labels.astype(np.uint8)

        layer = None
        if settings is not None:
            device = next(model.parameters()).device
            layer = settings.layer(model.num_classes).to(device)
        result = evaluate(
            model,
            data,
            layer,
            class_names=data.classes,
            trimap=WIDTHS,
            scales=config.validation_scales,
            on_prediction=keep,
        )
        write_arrays(pictures, kept)
        return result

    def keep(self, model: DeepLab, settings: CRFSettings | None, path: Path) -> None:
        """Write the weights with the CRF, as deeplab evaluate and segment read them."""
        data = self.data.score
        metadata: dict[str, Any] = {
            "class_names": list(data.classes),
            "palette": data.palette.tolist(),
        }
        if settings is not None:
            metadata["crf"] = settings.as_dict()
        save_weights(model, path, metadata)

    def forget(self, row: Row, seed: int) -> None:
        """Remove what a run needs to go on, once there is a record; its log stays."""
        files = Files(self.work / f"{row.name}-{seed}.safetensors")
        for path in (files.state, files.best, files.last):
            path.unlink(missing_ok=True)

    def needed(self, row: Row, seed: int) -> bool:
        """Whether there is no record yet; InputError where there is one of another recipe."""
        return not self.records.has(row, seed, self.config(row.name, seed))
