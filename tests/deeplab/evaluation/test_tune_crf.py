"""Tuning a CRF: the best setting is found, nothing is scored twice, stale files are refused."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import assert_refused, done, plain_weights, run
from PIL import Image
from several_processes import Started

from crf import Bilateral, Gaussian
from deeplab.cli.tune_crf import axis, draw
from deeplab.crf_settings import CRFSettings
from deeplab.data.outputs import NamedPalette, full_palette
from deeplab.data.scenes import CLASSES, PALETTE, VALIDATION_START, ScenesDataset
from deeplab.errors import InputError
from deeplab.evaluation.logit_cache import Cached, LogitCache
from deeplab.evaluation.tune_crf import RANDOM, Log, Scored, Space, Tuner, Tuning, heat_map, miou_of
from deeplab.model import deeplab_v2_small
from deeplab.predict import network_scores

FIXED = CRFSettings(iterations=3, gaussian=Gaussian(1.0, 1.0))
SPACE = Space((2.0, 4.0, 6.0), (4.0, 8.0, 12.0), (6.0, 12.0, 18.0))
PLANE = Space((4.0,), *SPACE.axes()[1:])  # where several searches look at many pictures
PLANTED = (4.0, 8.0, 12.0)
ABOUT = {"data": "planted"}
SIZE = (16, 20)  # of the planted pictures


def planted(point=PLANTED, count=2):
    """Noisy pictures whose truth is what the CRF says with the planted settings."""
    rng = np.random.default_rng(0)
    layer = CRFSettings(3, Gaussian(1.0, 1.0), Bilateral(*point)).layer(3)
    pictures = []
    for _ in range(count):
        blocks = np.kron(rng.integers(0, 3, (4, 5)), np.ones((4, 4), int))
        image = np.array([60, 110, 160])[blocks][None].repeat(3, 0) + rng.normal(0, 18, (3, *SIZE))
        image = torch.from_numpy(image.clip(0, 255).astype(np.uint8))[None]
        logits = torch.from_numpy(np.eye(3)[blocks].transpose(2, 0, 1)[None] * 1.5)
        logits = (logits + torch.from_numpy(rng.normal(0, 1.5, (1, 3, *SIZE)))).float()
        pictures.append(Cached(logits, image, layer(logits, image).argmax(1)[0]))
    return pictures


def tuner(path, pictures=None, **options):
    options.setdefault("folds", 2)
    return Tuner(pictures or planted(), 3, FIXED, Log(path, ABOUT), **options)


def search(found, rounds=1):
    for _ in found.grid(SPACE, rounds):
        pass
    return found.tuning()


def test_the_grid_finds_the_planted_settings(tmp_path):
    tuning = search(tuner(tmp_path / "r.jsonl"), rounds=0)
    assert tuning.best.point == PLANTED
    assert tuning.best.miou() == 1
    assert tuning.results[1].miou() < 1
    assert tuning.alone.miou() < tuning.best.miou()
    assert tuning.held_out() == 1
    assert tuning.fold_scores() == (1, 0)


def test_a_finer_round_finds_planted_settings_between_the_values_of_the_grid(tmp_path):
    between = (5.0, 10.0, 15.0)
    tuning = search(tuner(tmp_path / "r.jsonl", planted(between)), rounds=2)
    assert tuning.best.point == between
    assert tuning.best.miou() == 1
    assert between not in SPACE.grid()


def test_tpe_closes_in_on_the_planted_settings_and_resumes_as_if_never_stopped(tmp_path):
    pytest.importorskip("optuna", reason="optuna is not installed")
    whole = tuner(tmp_path / "whole.jsonl")
    list(whole.tpe(SPACE, 40, seed=1))
    scores = [miou_of(folds.sum(0)) for folds in whole.log.results.values()]
    assert np.mean(scores[-20:]) > np.mean(scores[:10]) + np.std(scores[:10])  # ten at random first
    assert max(scores) > max(scores[:10])
    path = tmp_path / "parts.jsonl"
    list(tuner(path).tpe(SPACE, 12, seed=1))
    rest = tuner(path)
    list(rest.tpe(SPACE, 40, seed=1))
    assert rest.tried == whole.tried
    assert rest.tuning() == whole.tuning()
    found, expected = (sorted(p.read_text().splitlines()) for p in (path, whole.log.path))
    assert found == expected


def test_a_log_with_the_names_of_an_earlier_version_goes_on(tmp_path):
    path = tmp_path / "r.jsonl"
    Log(path, {"gaussian_sigma": 1.0}).add(PLANTED, np.ones((2, 3, 3), np.int64))
    assert list(Log(path, {"gaussian_sigma_xy": 1.0}).results) == [PLANTED]
    with pytest.raises(InputError, match="another tuning: gaussian_sigma_xy"):
        Log(path, {"gaussian_sigma_xy": 2.0})


def test_scores_are_those_of_an_independent_count_over_all_pictures(tmp_path):
    pictures = planted(count=4)
    point = (6.0, 4.0, 6.0)
    result = tuner(tmp_path / "r.jsonl", pictures).score(point)
    layer = CRFSettings(3, Gaussian(1.0, 1.0), Bilateral(*point)).layer(3)
    true = np.concatenate([p.labels.numpy().ravel() for p in pictures])
    pred = np.concatenate([layer(p.logits, p.image).argmax(1).numpy().ravel() for p in pictures])
    iou = [((true == c) & (pred == c)).sum() / ((true == c) | (pred == c)).sum() for c in range(3)]
    assert result.miou() == pytest.approx(np.mean(iou), rel=1e-12)
    even = np.concatenate([np.full(SIZE[0] * SIZE[1], k % 2 == 0) for k in range(4)])
    assert result.folds[0].sum() == even.sum()
    assert np.trace(result.folds[0]) == (true == pred)[even].sum()


@pytest.mark.parametrize("torn", [b"", b'{"bilateral_weight": 2.0, "bilat'])
def test_a_stopped_search_goes_on_where_it_was_and_scores_nothing_twice(tmp_path, torn):
    path = tmp_path / "r.jsonl"
    first = tuner(path)

    def stop():
        if first.scored == 7:
            raise KeyboardInterrupt

    first.on_picture = stop
    with pytest.raises(KeyboardInterrupt):
        search(first)
    assert len(path.read_bytes().splitlines()) == 1 + 7
    with path.open("ab") as file:
        file.write(torn)
    second = tuner(path)
    tuning = search(second)
    whole = tuner(tmp_path / "whole.jsonl")
    assert tuning == search(whole)
    assert second.scored == whole.scored - 7
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()
    third = tuner(path)
    search(third)
    assert third.scored == 0


KILLED = """
import sys, time
sys.path.insert(0, {folder!r})
from pathlib import Path
from test_tune_crf import tuner, search
found = tuner(Path({path!r}))
found.on_picture = lambda: time.sleep(0.05)
search(found)
"""


@pytest.mark.slow
def test_a_killed_search_keeps_every_setting_it_finished(tmp_path):
    path = tmp_path / "r.jsonl"
    script = KILLED.format(folder=str(Path(__file__).parent), path=str(path))
    child = Started(("-c", script))
    try:
        deadline = time.monotonic() + 900
        while not path.exists() or path.read_bytes().count(b"\n") < 4:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        child.kill()
        child.communicate()
    finished = path.read_bytes().count(b"\n") - 1
    second = tuner(path)
    assert len(second.log.results) == finished >= 3
    search(second, rounds=0)
    assert second.scored == len(SPACE.grid()) - finished


def test_results_of_another_tuning_are_refused_and_the_difference_named(tmp_path):
    path = tmp_path / "r.jsonl"
    Log(path, {"data": "a", "iterations": 10})
    with pytest.raises(InputError, match=r"r.jsonl: .*another tuning: iterations 10 there, 5 here"):
        Log(path, {"data": "a", "iterations": 5})
    with pytest.raises(InputError, match="another tuning: search None there, tpe here"):
        Log(path, {"data": "a", "search": "tpe", "seed": 0})
    path.write_text("something else\n")
    with pytest.raises(InputError, match="not the results of a tuning"):
        Log(path, {"data": "a"})


def test_held_out_score_counts_each_fold_with_the_setting_chosen_without_it():
    def result(weight, *right):
        """Two classes, ten pixels a class and fold, so many of them right."""
        folds = [[[n, 10 - n], [10 - n, n]] for n in right]
        return Scored((weight, 1.0, 1.0), np.array(folds))

    a, b = result(1.0, 10, 2, 9), result(2.0, 5, 8, 9)
    tuning = Tuning([b, a], [b, a, b], a)
    expected = miou_of(b.folds[0] + a.folds[1] + b.folds[2])
    assert tuning.held_out() == expected
    assert expected < tuning.best.miou()


def of_two_kinds(held_out):
    """Four pictures; those of fold 0 and those of fold 1 have truths of different settings."""
    first, second = planted(held_out, 4), planted((4.0, 10.0, 15.0), 4)
    return [first[0], second[1], first[2], second[3]]


@pytest.mark.parametrize("kind", ["grid", "tpe"])
def test_no_step_of_the_search_without_a_fold_depends_on_its_pictures(tmp_path, kind):
    if kind == "tpe":
        pytest.importorskip("optuna", reason="optuna is not installed")
    runs = []
    for k, held_out in enumerate([(4.0, 4.0, 6.0), (4.0, 4.0, 18.0)]):
        found = tuner(tmp_path / f"{k}.jsonl", of_two_kinds(held_out))
        for _ in found.grid(PLANE, 1) if kind == "grid" else found.tpe(PLANE, 20):
            pass
        runs.append((found.tried, found.tuning()))
    (first, one), (second, other) = runs
    assert first[0] == second[0]
    assert one.choices[0] == other.choices[0]
    assert first[1] != second[1]  # which sees those pictures alone
    assert first[None] != second[None]
    assert one.held_out() < one.best.miou()


def test_the_searches_of_tpe_share_the_trials_at_random(tmp_path):
    pytest.importorskip("optuna", reason="optuna is not installed")
    found = tuner(tmp_path / "r.jsonl", of_two_kinds((4.0, 4.0, 6.0)))
    list(found.tpe(PLANE, 20))
    whole, first, second = found.tried.values()
    assert whole[:RANDOM] == first[:RANDOM] == second[:RANDOM]
    assert first[RANDOM:] != second[RANDOM:]


def test_searches_share_what_they_score(tmp_path):
    found = tuner(tmp_path / "r.jsonl", of_two_kinds((4.0, 4.0, 6.0)))
    waiting = [stage.waiting for stage in found.grid(PLANE, rounds=2)]
    assert len(waiting) == 1 + 3 * 2
    assert waiting[0] == PLANE.grid()
    scored = [point for stage in waiting for point in stage]
    assert found.scored == len(scored) == len(set(scored))
    assert set(scored) == {point for tried in found.tried.values() for point in tried}
    again = tuner(tmp_path / "r.jsonl", of_two_kinds((4.0, 4.0, 6.0)))
    assert not any(stage.waiting for stage in again.grid(PLANE, rounds=2))
    assert again.tuning() == found.tuning()


def test_heat_map_is_the_plane_of_the_best_weight():
    def result(point, right):
        return Scored(point, np.array([[[right, 10 - right], [0, 10]]]))

    results = [
        result((3.0, 30.0, 3.0), 2),
        result((4.0, 30.0, 3.0), 8),
        result((4.0, 50.0, 5.0), 9),
        result((4.0, 50.0, 3.0), 7),
    ]
    rows, columns, values = heat_map(results)
    assert (rows, columns) == ([30.0, 50.0], [3.0, 5.0])
    expected = [[results[1].miou(), np.nan], [results[3].miou(), results[2].miou()]]
    np.testing.assert_array_equal(values, expected)


def test_folds_that_do_not_fit_the_pictures_are_refused(tmp_path):
    for folds in (1, 3):
        with pytest.raises(InputError, match=f"folds must be 2 up to .* 2, not {folds}"):
            tuner(tmp_path / "r.jsonl", folds=folds)


def test_a_fold_without_a_labelled_pixel_is_refused_before_any_setting_is_scored(tmp_path):
    pictures = planted()
    pictures[1] = replace(pictures[1], labels=torch.full(SIZE, 255))
    with pytest.raises(InputError, match="fold 2 of 2: none of its pixels is labelled"):
        tuner(tmp_path / "r.jsonl", pictures)


# The cache of logits


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return deeplab_v2_small(len(CLASSES)).eval()


DATA = [tuple(ScenesDataset(s, 1, size)[0]) for s, size in ((0, 33), (1, (41, 25)), (2, 40))]


def filled(folder, model, data=DATA, indices=(0, 2), name="tiny", scale=1.0):
    classes = NamedPalette(full_palette(PALETTE), CLASSES)
    cache = LogitCache(folder, model, data, indices, name, classes, scale)
    return cache, list(cache.fill())


def test_cached_logits_are_upsampled_as_the_networks_style_does(tmp_path):
    torch.manual_seed(0)
    network = deeplab_v2_small(len(CLASSES), style="torchvision").eval()
    cache, _ = filled(tmp_path / "c", network, indices=(0,))
    with torch.no_grad():
        expected = network(network.preprocess(DATA[0][0])).softmax(1)
    torch.testing.assert_close(cache[0].logits.softmax(1), expected, atol=2e-3, rtol=0)


def test_cached_logits_have_the_softmax_of_the_network_and_are_computed_once(tmp_path, model):
    cache, computed = filled(tmp_path / "c", model)
    assert computed == [True, True]
    for position, index in enumerate((0, 2)):
        image, labels = DATA[index]
        with torch.no_grad():
            expected = model(model.preprocess(image)).softmax(1)
        found = cache[position]
        torch.testing.assert_close(found.logits.softmax(1), expected, atol=2e-3, rtol=0)
        np.testing.assert_array_equal(found.image[0].permute(1, 2, 0), image)
        np.testing.assert_array_equal(found.labels, labels)
    again, computed = filled(tmp_path / "c", model)
    assert computed == [False, False]
    assert again.identity() == cache.identity()
    stored = np.load(tmp_path / "c" / "00000.npz")
    assert stored["logits"].dtype == np.float16
    assert stored["logits"].shape == (len(CLASSES), 5, 5)
    assert stored["class_names"].tolist() == list(CLASSES)
    assert np.array_equal(stored["palette"], PALETTE[: len(CLASSES)])


def test_logits_at_a_scale_are_those_that_an_evaluation_at_it_has(tmp_path, model):
    cache, _ = filled(tmp_path / "c", model, scale=0.5)
    for position, index in enumerate((0, 2)):
        expected = network_scores(model, DATA[index][0], scales=(0.5,)).softmax(1)
        torch.testing.assert_close(cache[position].logits.softmax(1), expected, atol=2e-3, rtol=0)
    assert filled(tmp_path / "c", model, scale=0.5)[1] == [False, False]
    with pytest.raises(InputError, match="holds the logits of pictures at another scale; remove"):
        filled(tmp_path / "c", model)


def test_stale_caches_are_refused_and_the_difference_named(tmp_path, model):
    filled(tmp_path / "c", model)
    with pytest.raises(InputError, match="other pictures of it"):
        filled(tmp_path / "c", model, indices=(0, 1))
    with pytest.raises(InputError, match="another data set, tiny instead of large"):
        filled(tmp_path / "c", model, name="large")
    other = deeplab_v2_small(len(CLASSES)).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.head.classifier.bias[3] += 1e-3
    with pytest.raises(InputError, match="holds the logits of other weights, or of these at "):
        filled(tmp_path / "c", other)
    other.load_state_dict(model.state_dict())
    assert filled(tmp_path / "c", other)[1] == [False, False]
    other.set_scales((1.0, 0.5))
    with pytest.raises(InputError, match=r"or of these at other scales \(MSC\); remove it"):
        filled(tmp_path / "c", other)
    changed = list(DATA)
    changed[2] = (DATA[2][0], DATA[2][1] ^ 1)
    with pytest.raises(InputError, match=r"00001.npz: the labels of number 2 .* changed"):
        filled(tmp_path / "c", model, changed)
    (tmp_path / "c" / "00001.npz").write_bytes(b"PK half a file")
    with pytest.raises(InputError, match=r"00001.npz: damaged .*remove it"):
        filled(tmp_path / "c", model)
    (tmp_path / "c" / "00001.npz").unlink()
    assert filled(tmp_path / "c", model)[1] == [False, True]
    (tmp_path / "c" / "cache.json").unlink()
    with pytest.raises(InputError, match=r"no cache\.json that says whose logits they are"):
        filled(tmp_path / "c", other)


# The command


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("30:10:100", (30, 40, 50, 60, 70, 80, 90, 100)),
        ("3:1:6", (3, 4, 5, 6)),
        ("0.1:0.1:0.3", (0.1, 0.2, 0.3)),
        ("8,5,5", (5, 8)),
        ("4", (4,)),
    ],
)
def test_values_are_a_range_as_in_the_papers_or_a_list(text, values):
    assert axis("--x", text) == values


@pytest.mark.parametrize("text", ["", "3:6", "6:1:3", "3:0:6", "3:-1:6", "a,b", "0:1:3", "nan"])
def test_values_without_sense_are_refused_by_name(text):
    with pytest.raises(InputError, match=r"^--bilateral-sigma-xy"):
        axis("--bilateral-sigma-xy", text)


def test_pictures_are_drawn_at_random_but_always_the_same():
    assert draw(5, 9, 0) == [0, 1, 2, 3, 4]
    drawn = draw(1000, 100, 3)
    assert drawn == draw(1000, 100, 3) == sorted(set(drawn))
    assert len(drawn) == 100
    assert drawn != draw(1000, 100, 4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    return plain_weights(path, len(CLASSES), CLASSES)


def test_the_command_writes_settings_heat_map_and_results_and_goes_on(tmp_path, weights):
    out = tmp_path / "crf"
    options = ["--weights", weights, "--images", 2, "--folds", 2, "--out", out, "--iterations", 1]
    values = ["--bilateral-weight", "3", "--bilateral-sigma-xy", "20,40"]
    values += ["--bilateral-sigma-rgb", "5,10", "--data-option", "size=49"]
    result = done("tune-crf", *options, *values, "--rounds", 0)
    assert "Note: coarse: 4 settings, 2 pictures, " in result.stderr
    assert re.search(r"mIoU [\d.]+ without the CRF, [\d.]+ with the best", result.stdout)
    assert "held out" in result.stdout
    lines = (out / "results.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 4
    best = max((json.loads(line) for line in lines[1:]), key=lambda line: line["miou"])
    found = CRFSettings.from_toml(out / "crf.toml")
    bilateral = Bilateral(3.0, best["bilateral_sigma_xy"], best["bilateral_sigma_rgb"])
    assert found == CRFSettings(1, bilateral=bilateral)
    with Image.open(out / "heatmap.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    again = done("tune-crf", *options, *values, "--rounds", 0)
    assert "Note: 4 settings are known" in again.stderr
    assert again.stdout == result.stdout
    assert (out / "results.jsonl").read_text().splitlines() == lines
    other = run("tune-crf", *options, *values, "--rounds", 0, "--gaussian-weight", 2)
    assert other.exit_code == 2
    assert "another tuning: gaussian_weight 3.0 there, 2.0 here" in other.stderr


def test_the_command_refuses_what_makes_no_sense(tmp_path, weights):
    out = ["--out", tmp_path / "crf"]
    for message, *options in (
        ("--images must be at least 2, not 1", "--images", 1),
        ("--folds 5: there are only 3 pictures", "--images", 3, "--folds", 5),
        ("--folds must be at least 2, not 0", "--folds", 0),
        ("14400 settings, expected at most 10000", "--bilateral-sigma-xy", "1:1:900"),
        ("--bilateral-sigma-rgb x must be LOW:STEP:HIGH", "--bilateral-sigma-rgb", "x"),
        ("no data set 'none'", "--data", "none", "--root", tmp_path),
        ("voc2012: a folder is needed", "--data", "voc2012"),
        ("--data-option x must be KEY=VALUE", "--data-option", "x"),
        ("scenes: no option 'x'", "--data-option", "x=1"),
        ("--scale must be a number from 0.1 to 4, not 5", "--scale", 5),
        ("--device tpu must be auto, cpu or cuda", "--device", "tpu"),
    ):
        assert_refused(tmp_path, message, "tune-crf", "--weights", weights, *out, *options)


def test_fewer_pictures_than_folds_and_the_scale_are_said(tmp_path, weights):
    out = tmp_path / "crf"
    options = ["--weights", weights, "--images", 3, "--out", out, "--iterations", 1]
    options += ["--data-option", "size=33", "--rounds", 0, "--bilateral-weight", 3]
    options += ["--bilateral-sigma-xy", 20, "--bilateral-sigma-rgb", "5,10", "--scale", 0.5]
    result = done("tune-crf", *options)
    assert "Note: 3 pictures: 3 folds instead of 5" in result.stderr
    assert "over 3 folds" in result.stdout
    for told in (result.stdout, (out / "crf.toml").read_text()):
        assert re.search("3 of 3 pictures, seen at scale 0.5[:;]", told)


@pytest.mark.parametrize(("given", "seen_at"), [((), 1), (("--scale", 0.5), 0.5)])
def test_the_default_pictures_are_not_those_of_the_test(
    tmp_path, weights, monkeypatch, given, seen_at
):
    class Stop(Exception):
        pass

    def stop(folder, model, dataset, indices, name, classes, scale):
        assert dataset.dataset.names[0] == f"scene_{VALIDATION_START}"
        assert len(indices) == 100
        assert scale == seen_at
        raise Stop

    monkeypatch.setattr("deeplab.evaluation.logit_cache.LogitCache", stop)
    with pytest.raises(Stop):
        run("tune-crf", "--weights", weights, "--out", tmp_path / "crf", *given)
