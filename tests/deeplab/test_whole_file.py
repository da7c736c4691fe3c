"""A folder that is written whole: what an error, an interrupt and a second writing leave of it."""

from pathlib import Path

import pytest

from deeplab.whole_file import whole_folder


def filled(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "old.txt").write_text(text)
    return path


def texts(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_a_folder_replaces_the_one_before_it_and_leaves_nothing_beside(tmp_path):
    place = filled(tmp_path / "out", "before")
    with whole_folder(place) as folder:
        (folder / "new.txt").write_text("after")
        assert texts(place) == {"old.txt": "before"}
    assert texts(tmp_path) == {"out/new.txt": "after"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    usual = tmp_path / "usual"
    usual.mkdir()
    assert place.stat().st_mode == usual.stat().st_mode
    with whole_folder(tmp_path / "a" / "b") as folder:
        (folder / "x.txt").write_text("x")
    assert texts(tmp_path / "a") == {"b/x.txt": "x"}


def fill_half(place: Path, error: type[BaseException]) -> None:
    with whole_folder(place) as folder:
        (folder / "new.txt").write_text("half")
        raise error


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_within_leaves_what_was_there(tmp_path, before, error):
    place = filled(tmp_path / "out", "before") if before else tmp_path / "out"
    with pytest.raises(error):
        fill_half(place, error)
    assert texts(tmp_path) == ({"out/old.txt": "before"} if before else {})
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if before else [])


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_of_the_exchange_leaves_a_whole_folder(tmp_path, monkeypatch, at, after):
    place, rename, calls = filled(tmp_path / "out", "before"), Path.rename, []

    def interrupted(path, target):
        calls.append(target)
        if len(calls) != at:
            return rename(path, target)
        if after:
            rename(path, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(place) as folder:
        (folder / "new.txt").write_text("after")
    done = at == 2 and after
    assert texts(tmp_path) == ({"out/new.txt": "after"} if done else {"out/old.txt": "before"})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
