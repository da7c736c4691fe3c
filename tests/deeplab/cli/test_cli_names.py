"""File names that are no text, and options that are empty: said as they are, or refused."""

from campaign.case import invoke
from commands import assert_refused, scribbled


def test_a_name_that_is_no_text_is_printed_in_escapes(tmp_path, monkeypatch):
    scribbled(tmp_path)
    (tmp_path / "photo.png").rename(tmp_path / "\udcff.png")
    monkeypatch.chdir(tmp_path)
    ended = invoke(["refine", "\udcff.png", "marks.png"])
    assert (ended.status, ended.stderr) == (0, "")
    assert ended.stdout.startswith("\\udcff.png: 30 x 20")
    assert ended.stdout.endswith("-> out/\\udcff_labels.png\n")
    assert (tmp_path / "out" / "\udcff_labels.png").is_file()


def test_empty_weights_are_not_taken_for_none(tmp_path):
    place = ["--out", tmp_path / "w.safetensors"]
    assert_refused(tmp_path, "--weights must be a file", "train", "--weights", "", *place)
