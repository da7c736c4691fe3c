"""TOML from outside: files, options, and texts that are none."""

import tomllib
from pathlib import Path

import pytest

from deeplab import toml
from deeplab.cli.shared.options import key_value
from deeplab.crf_settings import CRFSettings
from deeplab.data.datasets.folder import read_class_file
from deeplab.errors import InputError
from deeplab.training.recipe import make_config, one_setting, read_recipe

NESTED = {
    "open lists": "x = " + "[" * 5000,
    "lists": "x = " + "[" * 5000 + "]" * 5000,
    "tables": "x = " + "{a = " * 5000,
    "keys": "x = {" + "a." * 5000 + "b = 1}",
    "few": "x = " + "[" * 60 + "]" * 60,
}


@pytest.mark.parametrize("text", NESTED.values(), ids=NESTED)
def test_a_text_that_nests_without_end_is_no_toml_to_any_reader(tmp_path: Path, text: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError, match="nested too deeply"):
        toml.loads(text)
    path = tmp_path / "classes.toml"
    path.write_text(text)
    for read in (lambda name: read_recipe(str(name)), CRFSettings.from_toml, read_class_file):
        with pytest.raises(InputError, match=r"classes\.toml: .*nested too deeply"):
            read(path)
    value = text.removeprefix("x = ").strip()
    assert key_value("--set", f"lr={value}", "") == ("lr", value)


def test_a_value_of_several_lines_sets_nothing_else() -> None:
    assert key_value("--set", "crop=[\n17,\n]", "") == ("crop", [17])
    key, value = key_value("--set", "crop=17\nsteps=5", "")
    assert (key, value) == ("crop", "17\nsteps=5")
    with pytest.raises(InputError, match=r"--set crop must be an integer, not '17\\nsteps=5'"):
        make_config(one_setting(key, value))


@pytest.mark.parametrize("value", [2**70 * 10**20, -(2**200), 10**400, 1e39, float("inf")])
def test_crf_settings_are_numbers_that_the_crf_can_compute_with(value: float) -> None:
    with pytest.raises(InputError, match="CRF bilateral_weight must be"):
        CRFSettings().changed({"bilateral_weight": value})
