import subprocess

import machine
import pytest
import torch


def test_ceilings_are_those_of_some_real_machine():
    ceilings = machine.ceilings("cpu")
    assert 1e8 < ceilings["bytes_per_second"] < 1e13
    assert 1e8 < ceilings["operations_per_second"] < 1e15


@pytest.mark.gpu
def test_a_gpu_has_a_ceiling_for_each_dtype():
    ceilings = machine.ceilings("cuda")
    plain = ceilings["operations_per_second"]
    assert plain < ceilings[machine.TF32_PEAK] < ceilings[machine.BF16_PEAK] < 1e16
    assert 1e10 < ceilings["bytes_per_second"] < 1e14


def test_versions_name_cuda_and_cudnn_where_there_are_any():
    versions = machine.versions()
    assert versions["cuda"] == torch.version.cuda
    assert (versions["cudnn"] is None) is (torch.backends.cudnn.version() is None)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-package"))
    versions = machine.versions()
    assert versions["torch"]
    assert versions["no-such-package"] is None


def test_a_changed_file_makes_the_commit_dirty_and_a_new_one_does_not(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    monkeypatch.setattr(machine, "ROOT", tmp_path)
    (tmp_path / "file").write_text("one")
    git("init", "--quiet")
    git("add", "file")
    git("commit", "--quiet", "-m", "first")
    (tmp_path / "record").write_text("new")
    assert machine.commit()["dirty"] is False
    (tmp_path / "file").write_text("two")
    commit = machine.commit()
    assert commit["dirty"] is True
    assert len(commit["id"]) == 40


def test_outside_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() == {"id": None, "dirty": None}
