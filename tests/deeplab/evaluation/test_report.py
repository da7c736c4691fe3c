"""The report of an evaluation: which pictures are worst, what the page holds, where it may go."""

import base64
import csv
import io
import json
import os
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from dataset_files import own_data
from PIL import Image

from deeplab.data.datasets import open_dataset
from deeplab.data.datasets.base import Remembering, SegmentationData
from deeplab.errors import InputError
from deeplab.evaluation import report
from deeplab.evaluation.evaluate import Evaluation, Scores
from deeplab.evaluation.metrics import ConfusionMatrix
from deeplab.evaluation.panels import as_rgb
from deeplab.evaluation.report import ReportFolder, WorstPictures, picture_scores
from deeplab.model.preprocess import Preprocessing

RGB = Preprocessing("caffe")
NAMES = ("<b>sky", "old tree", "never")
ABOUT = {"weights": "a<i>.safetensors", "split": "val", "crf_settings": {"iterations": 3}}


@pytest.fixture(autouse=True)
def dots(monkeypatch):
    """A dot for the confusion matrix, which takes matplotlib a while; test_plots.py draws it."""

    def dot(path, matrix, names):
        assert matrix.shape == (len(names),) * 2
        Image.new("L", (1, 1)).save(path)

    monkeypatch.setattr(report, "plot_confusion", dot)


class Drawn(SegmentationData):
    """Pictures of noise with labels of two classes, the first row ignored."""

    def __init__(self, count=6):
        names = [f"street/{i}" for i in range(count)]
        super().__init__("drawn val", names, NAMES, [[0, 0, 0], [0, 200, 0], [9, 9, 9]])

    def picture(self, index):
        random = np.random.default_rng(index)
        return random.integers(0, 256, (20, 30, 3), dtype=np.uint8), ()

    def labels(self, index):
        labels = np.zeros((20, 30), np.uint8)
        labels[:, 10:], labels[0] = 1, 255
        return labels

    def file(self, index):
        return self.names[index]

    def predicted(self, index, wrong):
        """Its labels but for so many wrong pixels in the second row."""
        labels = self.labels(index)
        labels[0] = 0
        labels[1, :wrong] = 1
        return labels


def seen(data, order, wrong, most):
    remembered = Remembering(data)
    worst = WorstPictures(remembered, data, RGB, most)
    for index in order:
        _ = remembered[index]
        worst.add(index, data.predicted(index, wrong[index]))
    return worst


def evaluation(data, crf=False):
    confusion = ConfusionMatrix(len(NAMES))
    for index in range(len(data)):
        confusion.update(data.labels(index), data.predicted(index, index))
    iou = {
        name: None if v != v else v for name, v in zip(NAMES, confusion.iou().tolist(), strict=True)
    }
    scores = Scores(confusion.miou(), 0.9, 0.8, None, iou)
    found = {"network": confusion} | ({"crf": confusion} if crf else {})
    return Evaluation(len(data), 4, scores, scores if crf else None, confusion=found)


def written(folder, data, most=3):
    worst = seen(data, range(len(data)), list(range(len(data))), most)
    found = worst.joined([worst.found])
    ReportFolder(folder, data).write(evaluation(data), found, ABOUT)
    return found


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Page(HTMLParser):
    """The pictures of a page and its texts; a reference to anything outside it is an error."""

    def __init__(self, text):
        super().__init__()
        self.pictures, self.texts, self.tags = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            assert name not in ("href", "srcset", "data")
            if name == "src":
                head, _, data = value.partition(",")
                assert head in ("data:image/png;base64", "data:image/jpeg;base64")
                self.pictures.append(base64.b64decode(data))

    def handle_data(self, data):
        self.texts.append(data.strip())


@pytest.mark.parametrize("seed", range(4))
def test_a_pictures_miou_is_that_of_the_classes_in_its_truth(seed):
    random = np.random.default_rng(seed)
    truth = random.choice([0, 1, 3, 255], (9, 11)).astype(np.uint8)
    predicted = random.integers(0, 5, (9, 11)).astype(np.uint8)  # 2 and 4 are nowhere in the truth
    confusion = ConfusionMatrix(5)
    confusion.update(truth, predicted)
    miou, accuracy, name = picture_scores("a", truth, predicted, 5)
    assert name == "a"
    assert miou == pytest.approx(float(confusion.iou()[[0, 1, 3]].mean()), abs=1e-12)
    assert accuracy == pytest.approx(confusion.pixel_accuracy(), abs=1e-12)
    assert picture_scores("a", np.full_like(truth, 255), predicted, 5) is None


def test_the_worst_pictures_are_kept_whatever_their_order_and_in_whichever_process():
    data, wrong = Drawn(), [3, 9, 0, 7, 1, 5]
    ranking = [f"street/{i}" for i in (1, 3, 5, 0, 4, 2)]
    first = None
    for order in (range(6), [5, 0, 3, 2, 4, 1], [1, 3, 5, 0, 4, 2]):
        worst = seen(data, order, wrong, 3)
        assert len(worst.found.worst) == 3  # the panels of others are not in memory
        found = worst.joined([worst.found])
        assert [one.name for one in found.scores] == ranking
        assert [one.name for one, _ in found.worst] == ranking[:3]
        first = first or found
        halves = [seen(data, order[part::2], wrong, 3).found for part in (0, 1)]
        assert worst.joined(halves) == first
    assert seen(data, range(6), wrong, 0).found.worst == []


def test_a_panel_shows_the_picture_that_was_read_last():
    data = Drawn(2)
    worst = seen(data, range(2), [4, 8], 2)
    for scores, jpeg in worst.found.worst:
        picture = data.image(data.names.index(scores.name))
        shown = np.asarray(Image.open(io.BytesIO(jpeg)), float)
        with Image.fromarray(picture) as image:
            tile = np.asarray(image.resize((100, 67), Image.Resampling.LANCZOS), float)
        assert np.abs(shown[14:81, :100] - tile).mean() < 8  # JPEG of noise
        assert np.abs(shown[14:81, :100] - tile[::-1]).mean() > 40


def test_a_report_holds_everything_in_one_page_and_as_files(tmp_path):
    data = Drawn()
    found = written(tmp_path / "deep" / "report", data)
    folder = tmp_path / "deep" / "report"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report"]
    files = sorted(path.relative_to(folder).as_posix() for path in content(folder))
    pictures = [f"worst/{n:03d}_street_{i}.jpg" for n, i in ((1, 5), (2, 4), (3, 3))]
    assert files == sorted(
        ["index.html", "scores.json", "pictures.csv", "confusion.png", *pictures]
    )
    page = Page((folder / "index.html").read_text())
    assert page.pictures == [(folder / name).read_bytes() for name in ("confusion.png", *pictures)]
    assert page.pictures[1:] == [jpeg for _, jpeg in found.worst]
    assert not page.tags & {"script", "link", "iframe"}
    result = evaluation(data)
    assert page.texts.count("<b>sky") == 2  # in the table and beside the pictures
    for text in ("<b>sky", "never", f"{100 * result.network.iou['old tree']:.2f}", "street/5"):
        assert text in page.texts
    assert any("a<i>.safetensors" in text for text in page.texts)
    assert "iterations = 3" in page.texts
    assert "The 3 worst of 6 pictures" in page.texts
    assert page.texts.index("never") > page.texts.index("old tree")  # it has no IoU
    pixels = int(result.confusion["network"].matrix[1].sum())
    assert f"{pixels:,}" in page.texts
    stored = json.loads((folder / "scores.json").read_text())
    assert stored == {"format": report.FORMAT, **ABOUT, **result.as_dict()}
    rows = list(csv.DictReader((folder / "pictures.csv").open()))
    assert [row["picture"] for row in rows] == [one.name for one in found.scores]
    assert float(rows[0]["miou"]) == pytest.approx(found.scores[0].miou, abs=1e-6)


def test_a_name_that_is_no_text_is_spelled_out(tmp_path):
    data = Drawn(2)
    data.names[1] = os.fsdecode(b"caf\xe9")
    written(tmp_path / "report", data)
    assert r"caf\udce9" in (tmp_path / "report" / "index.html").read_text()
    assert r"caf\udce9" in (tmp_path / "report" / "pictures.csv").read_text()


def test_only_nothing_and_a_report_are_replaced(tmp_path, monkeypatch):
    data = Drawn(2)
    place = tmp_path / "report"
    place.mkdir()
    written(place, data)
    written(place, Drawn(3), most=1)  # of the earlier report nothing is left
    assert len(list((place / "worst").iterdir())) == 1
    link = tmp_path / "link"
    link.symlink_to(place)
    written(link, data)
    assert link.is_symlink()
    assert len(list((place / "worst").iterdir())) == 2
    for foreign in ("notes.txt", "worst/mine.png"):
        (place / foreign).write_text("of somebody")
        with pytest.raises(InputError, match=r"^--report .*report must be a new folder, or a rep"):
            ReportFolder(place, data)
        (place / foreign).unlink()
    ReportFolder(place, data)
    for text in ("{}", "[1]", "{"):
        (place / "scores.json").write_text(text)
        with pytest.raises(InputError, match="must be a new folder, or a report"):
            ReportFolder(place, data)
    (tmp_path / "file").write_text("of somebody")
    with pytest.raises(InputError, match="must be a new folder, or a report"):
        ReportFolder(tmp_path / "file", data)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for inside in (".", "../here", ""):
        with pytest.raises(InputError, match="can be replaced as a whole"):
            ReportFolder(here / inside if inside else here.relative_to(here), data)
    with pytest.raises(InputError, match="can be replaced as a whole"):
        ReportFolder(type(here)("/proc"), data)  # a mount
    assert list(here.iterdir()) == []


def test_nothing_else_goes_into_the_folder_that_is_replaced(tmp_path):
    place, data = tmp_path / "report", Drawn(1)
    for inside in (place / "s.json", place, tmp_path / "x" / ".." / "report" / "p" / "deep"):
        with pytest.raises(InputError, match="would lie in the folder of --report"):
            ReportFolder(place, data, [tmp_path / "reports.json", inside])
    ReportFolder(place, data, [tmp_path / "report.json", tmp_path])


def test_a_report_does_not_become_part_of_the_data_set(tmp_path):
    data = open_dataset("folder", own_data(tmp_path / "own"), "all")
    with pytest.raises(InputError, match="would lie among the files of"):
        ReportFolder(tmp_path / "own" / "images" / "report", data)
    ReportFolder(tmp_path / "own" / "report", data)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_report_that_is_interrupted_leaves_the_one_before(tmp_path, monkeypatch, error):
    data = Drawn(3)
    written(tmp_path / "report", data)
    before = content(tmp_path)

    def interrupted(*_args):
        raise error

    monkeypatch.setattr(report.report_page, "page", interrupted)
    wanted = InputError if isinstance(error, OSError) else KeyboardInterrupt
    for place in ("report", "new"):
        with pytest.raises(wanted):
            written(tmp_path / place, data)
    assert content(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_folder_that_has_filled_meanwhile_is_left_alone(tmp_path):
    data = Drawn(2)
    place = ReportFolder(tmp_path / "report", data)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "notes.txt").write_text("of somebody")
    before, worst = content(tmp_path), seen(data, range(2), [1, 2], 2)
    with pytest.raises(InputError, match="must be a new folder"):
        place.write(evaluation(data), worst.found, ABOUT)
    assert content(tmp_path) == before


def test_without_matplotlib_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'deeplab-triton\[plots\]'"):
        ReportFolder(tmp_path / "report", Drawn(1))


def test_the_final_labels_of_the_page_are_the_crfs():
    data = Drawn(2)
    result = evaluation(data, crf=True)
    other = ConfusionMatrix(len(NAMES))
    result.confusion["network"] = other
    assert (report.final_confusion(result) == result.confusion["crf"].matrix.numpy()).all()
    assert (report.final_confusion(evaluation(data)) > 0).any()


def test_bands_that_are_chosen_are_shown():
    preprocessing = Preprocessing("caffe", in_channels=5)
    image = np.arange(5 * 12, dtype=np.uint8).reshape(3, 4, 5)
    np.testing.assert_array_equal(as_rgb(image, preprocessing, (4, 0, 2)), image[..., [4, 0, 2]])
    np.testing.assert_array_equal(as_rgb(image, preprocessing), image[..., :3])
