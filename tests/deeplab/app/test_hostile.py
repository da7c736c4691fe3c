"""Numbers, names and shapes that no page sends: each is an answer of 4xx in one sentence."""

import json
from urllib.parse import quote

import numpy as np
import pytest
from running_app import SETTINGS, Answer, Client, halves, png

from deeplab.app import inputs
from deeplab.app.refining import NUMBERS

CLASSES = [{"name": "left", "colour": [200, 0, 0]}, {"name": "right", "colour": [0, 0, 200]}]
DIGITS = "1" + "0" * 400
BAD_NUMBERS = ("1e400", "-1e400", "NaN", "5e-324", "-1", DIGITS, "true", '"3"', "[20, 20]", "{}")


def refusal(answer: Answer) -> str:
    """What was wrong with a request; one line that a person can read."""
    assert 400 <= answer.status < 500, answer.content[:300]
    assert "\n" not in answer.error
    assert len(answer.error) < 400
    return answer.error


@pytest.fixture
def wide(client: Client) -> Client:
    """A client with strokes on a picture that previews and exact filters reduce."""
    image, marks = halves(250, 300)
    client.open(image)
    client.post("/api/marks", marks.tobytes())
    return client


@pytest.mark.parametrize("name", [*NUMBERS, "gt_prob"])
def test_numbers_out_of_range_are_refused_by_name(wide: Client, name: str) -> None:
    for number in BAD_NUMBERS:
        if name.endswith("weight") and number == "5e-324":
            continue  # as good as 0
        settings = json.dumps({**SETTINGS, "classes": CLASSES})
        body = settings.removesuffix("}") + f', "{name}": {number}}}'
        preview = body.removesuffix("}") + ', "preview": true, "method": "exact"}'
        for path, content in [
            ("refine", body),
            ("refine", preview),
            ("download?file=crf.toml", body),
            ("download?file=mask.png", body),
        ]:
            assert f"{name} must be a" in refusal(wide.post(f"/api/{path}", content.encode()))


@pytest.mark.parametrize("depth", [970, 2000])
@pytest.mark.parametrize("name", ["classes", "gaussian_weight", "method", "heat"])
def test_brackets_in_brackets_are_refused(wide: Client, name: str, depth: int) -> None:
    body = f'{{"{name}": {"[" * depth}{"]" * depth}}}'.encode()
    assert "must be" in refusal(wide.post("/api/download?file=mask.png", body))
    if name != "classes":
        assert "must be" in refusal(wide.post("/api/refine", body))


def test_names_of_classes_may_hold_anything(wide: Client) -> None:
    names = ["\ud800", "\0", "\n\r", "x" * 5000, "é" * 100, "'\"]\\"]
    for name in names:
        classes = [{"name": name, "colour": [0, 0, 0]}] * 2
        for kind in ("overlay.png", "everything.zip", "reproduce.py"):
            answer = wide.post(f"/api/download?file={kind}", {**SETTINGS, "classes": classes})
            assert answer.status == 200, (name, kind)


@pytest.mark.parametrize("name", ["nothing", "x" * 5000, "coffee\n", "\0", "__class__"])
def test_examples_that_are_none_are_refused(client: Client, name: str) -> None:
    assert "example must be one of" in refusal(client.post(f"/api/open?example={quote(name)}"))


@pytest.mark.parametrize("shape", [(1, 1), (1, 30_000), (30_000, 1), (2, 20_001)])
def test_thin_photographs_are_refined(client: Client, shape: tuple[int, int]) -> None:
    client.open(np.zeros((*shape, 3), np.uint8))
    marks = np.full(shape, 255, np.uint8)
    marks.flat[0], marks.flat[-1] = 0, 1
    client.post("/api/marks", marks.tobytes())
    for more in ({}, {"preview": True}, {"method": "exact"}):
        answer = client.post("/api/refine", SETTINGS | {"iterations": 1} | more)
        assert answer.status == (400 if shape == (1, 1) else 200)


def test_a_photograph_of_one_row_is_reduced_too(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "WORKING", 500)
    about = client.open(np.zeros((1, 3000, 3), np.uint8))
    assert (about["width"], about["height"]) == (500, 1)


def test_more_classes_than_fit_on_the_pixels_are_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeplab.app.refining.VALUES", 10_000)
    client.open(halves()[0])
    marks = np.full(2400, 255, np.uint8)
    marks[:5] = range(5)
    client.post("/api/marks", marks.tobytes())
    message = "scribbles of 5 classes on 2400 pixels are 0 million values"
    assert message in refusal(client.post("/api/refine", SETTINGS))
    download = {**SETTINGS, "classes": CLASSES * 3}
    assert message in refusal(client.post("/api/download?file=mask.png", download))
    marks[4] = 3
    client.post("/api/marks", marks.tobytes())
    assert client.post("/api/refine", SETTINGS).status == 200


def test_every_address_wants_a_visit_of_this_server(client: Client) -> None:
    for token in ("", "\xff", "x" * 5000):
        client.token = token
        for path in ("marks", "result", "segment", "refine", "download"):
            assert client.post(f"/api/{path}", png(halves()[0])).status == 410
