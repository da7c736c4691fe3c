"""Tuning a CRF: which w1, sigma_alpha, sigma_beta give the best mIoU on cached logits.

    k(i, j) = w1 exp(-|p_i - p_j|^2 / 2 sigma_alpha^2 - |I_i - I_j|^2 / 2 sigma_beta^2)
            + w2 exp(-|p_i - p_j|^2 / 2 sigma_gamma^2)

w2 and sigma_gamma stay as they are (3 and 3 in the papers). "grid" is the papers' search, coarse to
fine: all settings of a grid first, then in each round those half a step around the best so far,
half of that, ... "tpe" lets optuna's tree-structured Parzen estimator propose settings.

Each setting is scored with one confusion matrix a fold. The search over all pictures gives the
settings to use. The *held-out* score tells how far their score is owed to the choice among many:
the whole search is made again for each fold without that fold's pictures, and the fold counts with
what that search chose. The searches share their results.

Every result is a line of a JSONL file, written before the next setting starts; a run that was
stopped goes on from there. Sources: DeepLab v1, section 5.1; v2, section 4; Akiba et al., "Optuna",
KDD 2019.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from deeplab.crf_settings import CRFSettings, renamed
from deeplab.errors import InputError
from deeplab.evaluation.logit_cache import Cached
from deeplab.evaluation.metrics import ConfusionMatrix

TUNED = ("bilateral_weight", "bilateral_sigma_xy", "bilateral_sigma_rgb")

Point = tuple[float, float, float]  # values of TUNED
OnPicture = Callable[[], None]

RANDOM = 10  # trials before optuna learns from results


class Pictures(Protocol):
    """What is scored: a number of pictures with their logits."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Cached: ...


@dataclass(frozen=True)
class Space:
    """The coarse grid: the values of each tuned number, rising. The papers' by default."""

    bilateral_weight: tuple[float, ...] = (3.0, 4.0, 5.0, 6.0)
    bilateral_sigma_xy: tuple[float, ...] = (30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0)
    bilateral_sigma_rgb: tuple[float, ...] = (3.0, 4.0, 5.0, 6.0)

    def axes(self) -> list[tuple[float, ...]]:
        """The values of `TUNED`, in their order."""
        return [getattr(self, name) for name in TUNED]

    def grid(self) -> list[Point]:
        """All settings of the coarse grid."""
        return [(w, xy, rgb) for w, xy, rgb in product(*self.axes())]

    def around(self, point: Point, shrink: float) -> list[Point]:
        """The settings `shrink` steps of the coarse grid around one; numbers stay above 0."""
        axes = []
        for value, axis in zip(point, self.axes(), strict=True):
            step = shrink * (axis[-1] - axis[0]) / max(1, len(axis) - 1)
            near = {value} if step == 0 else {value - step, value, value + step}
            axes.append(sorted(_rounded(v) for v in near if v > 0))
        return [(w, xy, rgb) for w, xy, rgb in product(*axes)]

    def on_edge(self, point: Point) -> list[str]:
        """The tuned numbers that lie at or beyond an end of their values, where there are more."""
        ends = zip(TUNED, point, self.axes(), strict=True)
        return [n for n, v, axis in ends if len(axis) > 1 and not axis[0] < v < axis[-1]]


@dataclass(frozen=True)
class Scored:
    """The confusion of each fold with one setting, int64 `[folds, C, C]`."""

    point: Point
    folds: np.ndarray = field(repr=False, compare=False)

    def miou(self, folds: Iterable[int] | None = None) -> float:
        """mIoU over these folds, all by default."""
        chosen = range(len(self.folds)) if folds is None else list(folds)
        return miou_of(sum(self.folds[k] for k in chosen))


@dataclass(frozen=True)
class Stage:
    """A part of a search: its name, and the settings that are not scored yet."""

    name: str
    waiting: list[Point]


@dataclass(frozen=True)
class Tuning:
    """What a search found.

    Attributes:
        results: of the search over all pictures, best first.
        choices: for each fold what the search without its pictures chose.
        alone: the network without a CRF.
    """

    results: list[Scored]
    choices: list[Scored]
    alone: Scored

    @property
    def best(self) -> Scored:
        return self.results[0]

    def fold_scores(self) -> tuple[float, float]:
        """Mean and standard deviation over the folds of the best setting's mIoU.

        A class that a fold lacks is left out of that fold's, so that their mean is usually above
        the mIoU over all pictures.
        """
        scores = [self.best.miou([k]) for k in range(len(self.best.folds))]
        return float(np.mean(scores)), float(np.std(scores))

    def held_out(self) -> float:
        """mIoU of each fold with the setting that was chosen without it, in one matrix."""
        return miou_of(sum(choice.folds[k] for k, choice in enumerate(self.choices)))


def miou_of(matrix: Any) -> float:
    """The mIoU of a confusion matrix `[C, C]`; a class that is absent is left out."""
    confusion = ConfusionMatrix(len(matrix), None)
    confusion.matrix = torch.as_tensor(matrix)
    return confusion.miou()


class Log:
    """The results so far: a JSONL file whose first line says what was tuned.

    A line that a kill cut off is removed; its setting is scored again. Raises InputError where the
    file belongs to another search, and names the difference.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.results: dict[Point, np.ndarray] = {}
        about = json.loads(json.dumps(about))
        try:
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if not whole:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"")
                self._append({"tuning": about})
                return
            self._read(whole, about)
            if whole != content:
                os.truncate(path, len(whole))
        except OSError as error:
            raise InputError(f"{path}: cannot be used ({error.strerror or error})") from error

    def add(self, point: Point, folds: np.ndarray) -> None:
        """Write a result, in one piece and through to the disk."""
        self.results[point] = folds
        line = dict(zip(TUNED, point, strict=True)) | {
            "miou": miou_of(folds.sum(0)),
            "folds": folds.tolist(),
        }
        try:
            self._append(line)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror or error}); mend that, and the "
                "same command goes on"
            ) from error

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, content: bytes, about: dict[str, Any]) -> None:
        try:
            first, *lines = (json.loads(line) for line in content.splitlines())
            stored = renamed(first["tuning"])
            for line in lines:
                point = (float(line[TUNED[0]]), float(line[TUNED[1]]), float(line[TUNED[2]]))
                self.results[point] = np.array(line["folds"], np.int64)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.path}: not the results of a tuning ({error!r:.80}); choose another --out"
            ) from error
        for key in (*about, *stored):
            if stored.get(key) != about.get(key):
                raise InputError(
                    f"{self.path}: belongs to another tuning: {key} {stored.get(key)!s:.80} there, "
                    f"{about.get(key)!s:.80} here; choose another --out, or remove it"
                )


class Tuner:
    """Scores settings on pictures, several at a time, and searches for the best.

    Args:
        pictures: see `deeplab.evaluation.logit_cache.LogitCache`.
        fixed: the settings of which the tuned numbers are replaced.
        log: where results go, and come from where a run is resumed.
        folds: 2 up to the number of pictures; picture i is in fold i % folds.
        on_picture: called after every picture of a setting.

    Raises InputError for a wrong number of folds, and a fold without a labelled pixel.
    """

    def __init__(
        self,
        pictures: Pictures,
        num_classes: int,
        fixed: CRFSettings,
        log: Log,
        *,
        folds: int = 5,
        device: torch.device | str = "cpu",
        on_picture: OnPicture | None = None,
    ) -> None:
        if not 2 <= folds <= len(pictures):
            raise InputError(
                f"folds must be 2 up to the number of pictures, {len(pictures)}, not {folds}"
            )
        self.pictures, self.num_classes, self.fixed = pictures, num_classes, fixed
        self.log, self.folds, self.device = log, folds, torch.device(device)
        self.on_picture = on_picture or (lambda: None)
        self.scored = 0  # settings, in this run
        self.tried: dict[int | None, list[Point]] = {}  # by the fold that a search does without
        self.alone = self._alone()

    def settings(self, point: Point) -> CRFSettings:
        """The CRF settings of a point."""
        return self.fixed.changed(dict(zip(TUNED, point, strict=True)))

    def score(self, point: Point) -> Scored:
        """The result of a setting, from the log where it is there."""
        if point not in self.log.results:
            layer = self.settings(point).layer(self.num_classes).to(self.device)
            self.log.add(point, self._confusion(layer))
            self.scored += 1
        return Scored(point, self.log.results[point])

    def grid(self, space: Space, rounds: int = 2) -> Iterator[Stage]:
        """The coarse grid, then `rounds` finer ones of each search; yields each before it starts.

        Each round looks half a step of the round before around the best setting of its search.
        """
        coarse = space.grid()
        yield Stage("coarse", self._unknown(coarse))
        for point in coarse:
            self.score(point)
        for without in (None, *range(self.folds)):
            tried = self.tried[without] = list(coarse)
            for k in range(1, rounds + 1):
                best = self._best(without).point
                finer = [p for p in space.around(best, 0.5**k) if p not in tried]
                yield Stage(f"finer, {k} of {rounds}{_without_fold(without)}", self._unknown(finer))
                for point in finer:
                    self.score(point)
                tried += finer

    def tpe(self, space: Space, trials: int, seed: int = 0) -> Iterator[Stage]:
        """`trials` settings of each search between the ends of the space, that optuna proposes.

        The first `RANDOM` are drawn at random. Trial k depends on the seed, k and the results of
        its search alone, so that a search can be resumed. Yields each trial before it starts.
        """
        optuna = _optuna()
        axes = space.axes()
        distributions = {
            name: optuna.distributions.FloatDistribution(axis[0], axis[-1])
            for name, axis in zip(TUNED, axes, strict=True)
        }
        for without in (None, *range(self.folds)):
            tried = self.tried[without] = []
            study = optuna.create_study(direction="maximize")
            for k in range(trials):
                study.sampler = optuna.samplers.TPESampler(seed=seed + k, n_startup_trials=RANDOM)
                trial = study.ask(distributions)
                w, xy, rgb = (_rounded(trial.params[name]) for name in TUNED)
                tried.append((w, xy, rgb))
                yield Stage(
                    f"trial {k + 1} of {trials}{_without_fold(without)}", self._unknown(tried[-1:])
                )
                study.tell(trial, self.score(tried[-1]).miou(self._seen(without)))

    def tuning(self) -> Tuning:
        """What `grid` or `tpe` found, once it is at its end; the earlier of equals first."""
        results = [self.score(point) for point in self.tried[None]]
        choices = [self._best(fold) for fold in range(self.folds)]
        return Tuning(sorted(results, key=lambda r: -r.miou()), choices, self.alone)

    def _seen(self, without: int | None) -> list[int]:
        """The folds that a search looks at."""
        return [fold for fold in range(self.folds) if fold != without]

    def _best(self, without: int | None) -> Scored:
        """The best of what a search has tried, in its own eyes; the first of equals."""
        seen = self._seen(without)
        return max((self.score(p) for p in self.tried[without]), key=lambda r: r.miou(seen))

    def _unknown(self, points: Sequence[Point]) -> list[Point]:
        return [point for point in points if point not in self.log.results]

    def _alone(self) -> Scored:
        """The network without a CRF; InputError where a fold has no labelled pixel."""
        result = Scored((0.0, 0.0, 0.0), self._confusion(None))
        for fold, matrix in enumerate(result.folds):
            if not matrix.any():
                raise InputError(
                    f"fold {fold + 1} of {self.folds}: none of its pixels is labelled; take more "
                    "pictures, or fewer folds"
                )
        return result

    def _confusion(self, layer: Callable[[Tensor, Tensor], Tensor] | None) -> np.ndarray:
        """Counts of each fold, int64 `[folds, C, C]`."""
        counts = np.zeros((self.folds, self.num_classes, self.num_classes), np.int64)
        for position, matrix in self._each(layer):
            counts[position % self.folds] += matrix
            self.on_picture()
        return counts

    def _each(
        self, layer: Callable[[Tensor, Tensor], Tensor] | None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The confusion of every picture, in order.

        On a CPU as many pictures at a time as torch has threads, one thread each: that keeps cores
        busier than all of them on one picture after another.
        """

        def one(position: int) -> np.ndarray:
            cached = self.pictures[position]
            with torch.inference_mode():
                scores = cached.logits.to(self.device)
                if layer is not None:
                    scores = layer(scores, cached.image.to(self.device))
                confusion = ConfusionMatrix(self.num_classes)
                confusion.update(cached.labels, scores.argmax(1)[0].cpu())
            return confusion.matrix.numpy()

        count = len(self.pictures)
        if self.device.type != "cpu" or torch.get_num_threads() == 1:
            yield from ((position, one(position)) for position in range(count))
            return
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        try:
            yield from enumerate(pool.map(one, range(count)))
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def log_identity(
    data: str, cache: str, fixed: CRFSettings, search: str, space: Space, **rest: Any
) -> dict[str, Any]:
    """What must be equal for a log to be resumed. The number of rounds and trials may grow."""
    stays = {k: v for k, v in fixed.as_dict().items() if k not in TUNED}
    return {
        "data": data,
        "weights or pictures, by their hash": cache,
        "search": search,
        **stays,
        **{f"values of {name}": list(getattr(space, name)) for name in TUNED},
        **rest,
    }


def heat_map(results: Sequence[Scored]) -> tuple[list[float], list[float], np.ndarray]:
    """sigma_xy, sigma_rgb and the mIoU `[xy, rgb]` at the best weight, NaN where none was tried."""
    weight = max(results, key=Scored.miou).point[0]
    shown = {r.point[1:]: r.miou() for r in results if r.point[0] == weight}
    rows, columns = sorted({xy for xy, _ in shown}), sorted({rgb for _, rgb in shown})
    values = [[shown.get((xy, rgb), math.nan) for rgb in columns] for xy in rows]
    return rows, columns, np.array(values)


def _without_fold(without: int | None) -> str:
    return "" if without is None else f", without fold {without + 1}"


def _rounded(value: float) -> float:
    """Six digits: what a person reads in the TOML file is what was scored."""
    return float(f"{value:.6g}")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError(
            "--search tpe needs optuna: pip install 'deeplab-triton[tune]'; or use --search grid"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
