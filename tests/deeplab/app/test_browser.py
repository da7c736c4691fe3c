"""The page in a real browser: painted on, slid, downloaded from, by mouse, keys and touch."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_page import (
    COLOURS,
    DONE,
    IMAGE,
    MARKS,
    centre,
    colour,
    draw,
    focused,
    hold,
    radio,
    redder,
    refuse,
    release,
    texts,
    wait_for,
)
from PIL import Image
from running_app import SETTINGS, halves, npz, png, softmax

from deeplab.app import refining, server
from deeplab.app.refining import Problem, Wish, refined
from deeplab.app.server import Server


def test_the_first_view_has_a_result_and_every_control_a_name(visit: Callable[..., Any]) -> None:
    page = visit()
    assert redder(page, 20, 100)
    assert not redder(page, 160, 100)
    assert "Refined at 180 × 120" in page.inner_text("#status")
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in tree:
        if not node["ignored"]:
            name = node.get("name", {}).get("value", "")
            named.setdefault(node["role"]["value"], []).append(name)
    for role in ("button", "slider", "combobox", "radio", "checkbox", "textbox", "ColorWell"):
        assert named[role], role
        assert "" not in named[role], role
    assert named["radiogroup"] == ["Classes"]
    assert {"Tool", "What is shown"} <= set(named["group"])
    shifted = page.evaluate(
        """() => new Promise((done) => {
            const seen = new PerformanceObserver((list) => sum(list.getEntries()));
            const sum = (entries) => done(entries.reduce((all, each) => all + each.value, 0));
            seen.observe({type: 'layout-shift', buffered: true});
            setTimeout(() => sum([]), 300);
        })"""
    )
    assert shifted < 0.02  # nothing is pushed away while the page loads


def test_strokes_change_the_result_and_can_be_taken_back(visit: Callable[..., Any]) -> None:
    page = visit()
    page.get_by_role("radio", name="Paint left").check()
    draw(page, (171, 20), (173, 100))
    assert redder(page, 170, 100)
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector(DONE)
    assert not redder(page, 170, 100)
    page.get_by_role("button", name="Redo").click()
    page.wait_for_selector(DONE)
    assert redder(page, 170, 100)
    radio(page, "Erase")
    page.locator("#size").fill("10")
    draw(page, (171, 20), (173, 100))
    assert not redder(page, 170, 100)
    page.get_by_role("button", name="Clear").click()
    page.wait_for_selector("body[data-state=waiting]")
    assert "Paint a stroke in each of two classes" in page.inner_text("#status")


def test_a_class_can_be_added_named_painted_and_removed(visit: Callable[..., Any]) -> None:
    page = visit()
    page.get_by_role("button", name="Add a class").click()
    page.keyboard.type("sun")
    page.get_by_label("Colour of sun").fill("#00ff00")
    draw(page, (150, 5), (175, 5))
    _, green, _ = colour(page, 165, 5)
    assert green == 255
    page.get_by_role("button", name="Remove sun and its strokes").press("Enter")
    page.wait_for_selector(DONE)
    assert focused(page) == "Remove right and its strokes"  # which takes its place
    assert page.get_by_role("radio", name="Paint sun").count() == 0
    assert colour(page, 165, 5)[1] < 255
    page.keyboard.press("Control+z")
    page.wait_for_selector(DONE)
    assert page.get_by_role("radio", name="Paint sun").count() == 1
    assert colour(page, 165, 5)[1] == 255
    page.keyboard.press("Control+z")  # the stroke, then the colour, the name and the class
    page.wait_for_selector(DONE)
    assert colour(page, 165, 5)[1] < 255
    page.keyboard.press("Control+z")
    assert page.get_by_label("Colour of sun").input_value() != "#00ff00"
    page.keyboard.press("Control+z")
    assert page.get_by_label("Name of class 3").input_value() == "class 3"
    undo = page.get_by_role("button", name="Undo")
    undo.press("Enter")
    assert page.get_by_label("Name of class 3").count() == 0
    assert undo.is_disabled()
    assert focused(page) == "Photograph to paint on"  # not lost with the button
    for _ in range(3):
        page.keyboard.press("Control+y")
    assert page.get_by_label("Colour of sun").input_value() == "#00ff00"


def test_a_slider_shows_a_preview_and_then_the_whole(
    visit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refining, "PREVIEW", 6000)
    monkeypatch.setitem(refining.SLOW, "exact", 600)
    page = visit()
    asked: list[dict[str, Any]] = []
    page.on(
        "request",
        lambda request: (
            asked.append(json.loads(request.post_data)) if "refine" in request.url else None
        ),
    )
    page.get_by_label("Appearance weight").press("ArrowRight")
    page.wait_for_selector(DONE)
    assert [each["preview"] for each in asked] == [True, False]
    assert "Refined at 180 × 120" in page.inner_text("#status")
    preview, whole = ({**each, "preview": None} for each in asked)
    assert preview == whole
    assert (whole["bilateral_weight"], whole["method"]) == (5.5, "permutohedral")
    page.get_by_label("Method").select_option("exact")
    page.wait_for_selector(DONE)
    page.locator("#number-iterations").press("ArrowRight")
    page.wait_for_selector(DONE)
    assert (asked[-1]["iterations"], asked[-1]["method"]) == (6, "exact")
    monkeypatch.undo()
    page.get_by_label("Method").select_option("permutohedral")
    page.wait_for_selector(DONE)
    page.evaluate("() => { window.setTimeout = () => 0; }")  # nothing is asked after a while
    page.locator("#number-iterations").fill("0")
    page.wait_for_selector(DONE)
    assert asked[-1]["preview"]  # of all pixels of a photograph as small as this
    assert redder(page, 20, 100) == redder(page, 160, 100)  # no opinion but at the strokes
    page.get_by_role("button", name="Reset").click()
    page.wait_for_selector(DONE)
    assert asked[-1]["bilateral_weight"] == 5
    assert not redder(page, 160, 100)


def test_downloads_are_what_the_package_computes(visit: Callable[..., Any]) -> None:
    page = visit()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Everything").click()
    assert waiting.value.suggested_filename == "halves_everything.zip"
    archive = zipfile.ZipFile(waiting.value.path())
    mask = np.array(Image.open(io.BytesIO(archive.read("mask.png"))))
    wish = Wish.of({**SETTINGS, "iterations": 5})
    assert np.array_equal(mask, refined(Problem(IMAGE, MARKS), wish).labels)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Settings").click()
    assert b"bilateral_weight = 5" in Path(waiting.value.path()).read_bytes()


def test_a_wrong_file_is_explained_and_nothing_is_lost(
    visit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "UPLOAD", 3000)
    page = visit(refusal="400")
    said = page.get_by_role("alert")
    for field, name, content in (
        ("#photo-file", "notes.txt", b"no picture"),
        ("#photo-file", "large.png", bytes(3010)),
        ("#result-file", "other.npz", npz(p=softmax(7, 9, 3))),
    ):
        file = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
        page.set_input_files(field, file)
        said.filter(has_text=name).wait_for()
    assert "shape [3, 7, 9] does not fit the image" in said.inner_text()
    draw(page, (20, 20), (30, 30))
    assert said.is_hidden()
    assert redder(page, 20, 100)


def test_what_is_asked_is_said_and_is_not_drawn_once_strokes_are_cleared(
    visit: Callable[..., Any],
) -> None:
    page = visit()
    waiting = hold(page, "/api/refine")
    page.get_by_label("Trust in strokes").press("ArrowRight")
    assert page.inner_text("#status") == "Refining…"
    wait_for(page, waiting)
    page.get_by_text("Still refining. The first time, the CRF is compiled").wait_for()
    assert page.get_attribute("#frame", "aria-busy") == "true"
    page.get_by_role("button", name="Clear").click()
    release(page, waiting)
    assert colour(page, 100, 100) == IMAGE[100, 100].tolist()
    assert page.get_attribute("body", "data-state") == "waiting"


def test_of_two_photographs_the_one_opened_last_stays(visit: Callable[..., Any]) -> None:
    page = visit()
    waiting = hold(page, "/api/open")
    small = {"name": "small.png", "mimeType": "image/png", "buffer": png(halves(60, 90)[0])}
    page.set_input_files("#photo-file", small)
    page.locator("#examples").select_option("halves.png")
    wait_for(page, waiting)
    page.get_by_label("Trust in strokes").press("ArrowRight")  # of what is about to go
    release(page, waiting)
    page.wait_for_selector(DONE)
    assert "Refined at 180 × 120" in page.inner_text("#status")
    with page.expect_download() as download:
        page.get_by_role("button", name="Everything").click()
    archive = zipfile.ZipFile(download.value.path())
    assert np.array_equal(np.array(Image.open(io.BytesIO(archive.read("photo.png")))), IMAGE)
    page.set_input_files("#photo-file", small)
    page.wait_for_selector("body[data-state=waiting]")
    assert page.locator("#examples option:checked").inner_text() == "small.png"
    assert page.get_by_role("alert").is_hidden()


def test_what_is_being_refined_goes_on_where_opening_fails(visit: Callable[..., Any]) -> None:
    page = visit(refusal="400")
    page.get_by_role("radio", name="Paint left").check()
    waiting = hold(page, "/api/refine")
    draw(page, (150, 20), (170, 60), (150, 100), wait=False)
    wait_for(page, waiting)
    file = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    page.set_input_files("#photo-file", file)
    said = page.get_by_role("alert")
    said.filter(has_text="notes.txt").wait_for()
    release(page, waiting)
    page.wait_for_selector(DONE)
    assert redder(page, 160, 100)
    assert "notes.txt" in said.inner_text()  # until the person goes on


def test_a_failure_is_shown_until_what_failed_succeeds(visit: Callable[..., Any]) -> None:
    page = visit(refusal="503")
    said = page.get_by_role("alert")
    refuse(page, "/api/download")
    page.get_by_role("button", name="Mask").click()
    said.filter(has_text="too much at once").wait_for()
    assert "Refined at 180 × 120" in page.inner_text("#status")
    said.get_by_role("button", name="Close the message").click()
    assert said.is_hidden()
    assert focused(page) == "Photograph to paint on"
    refuse(page, "/api/download")
    page.get_by_role("button", name="Mask").click()
    said.filter(has_text="too much at once").wait_for()
    refuse(page, "/api/refine")
    page.get_by_role("button", name="Reset").click()
    page.wait_for_selector("body[data-state=failed]")
    assert said.locator("p").count() == 2
    with page.expect_download():
        page.get_by_role("button", name="Mask").click()
    assert said.locator("p").count() == 1  # of the refinement, which is not done yet
    page.get_by_role("button", name="Reset").click()
    page.wait_for_selector(DONE)
    assert said.is_hidden()
    refuse(page, "/api/about")
    page.reload()
    said.filter(has_text="too much at once").wait_for()
    assert page.locator("#open").is_visible()


def test_the_page_says_where_photographs_go(
    visit: Callable[..., Any], address: tuple[Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visit()
    for local, expected in (
        (True, "Photographs go to deeplab app where you started it, and to no other machine."),
        (False, f"Photographs go to deeplab app at {page.url[7:-1]}, and no further. Others "),
    ):
        monkeypatch.setattr(address[0], "local", local)
        page.reload()
        page.wait_for_selector(DONE)
        assert page.inner_text("#whither").startswith(expected)


def test_a_photograph_and_a_networks_result_are_opened(visit: Callable[..., Any]) -> None:
    page = visit()
    image, _ = halves(60, 90)
    page.set_input_files(
        "#photo-file", {"name": "mine.png", "mimeType": "image/png", "buffer": png(image)}
    )
    page.wait_for_selector("body[data-state=waiting]")
    assert page.get_by_role("radio", name="Paint background").is_checked()
    content = npz(p=softmax(60, 90, 3), class_names=np.array(["a", "b", "c"]))
    dropped = page.evaluate_handle(
        """(bytes) => {
            const dropped = new DataTransfer();
            dropped.items.add(new File([new Uint8Array(bytes)], 'r.npz'));
            return dropped;
        }""",
        list(content),
    )
    page.dispatch_event("#frame", "drop", {"dataTransfer": dropped})
    page.wait_for_selector(DONE)
    assert page.get_by_label("Name of class 3").input_value() == "c"
    assert page.get_by_role("radio", name="Erase").is_disabled()
    rows = page.locator("#classes li").all()
    paper = "(row) => getComputedStyle(row).backgroundColor"
    assert len({row.evaluate(paper) for row in rows}) == 1  # none is chosen
    reach = page.get_by_label("Appearance reach")
    assert reach.input_value() == "49"
    assert "the sliders are those for results" in page.inner_text("#status")
    reach.fill("60")
    page.get_by_role("button", name="Reset").click()
    page.wait_for_selector(DONE)
    assert reach.input_value() == "49"
    page.get_by_role("button", name="Back to scribbles").click()
    page.wait_for_selector("body[data-state=waiting]")
    assert reach.input_value() == "20"
    assert page.get_by_role("radio", name="Erase").is_enabled()
    assert page.get_by_label("Name of class 2").input_value() == "object"


def test_each_view_shows_its_own(visit: Callable[..., Any]) -> None:
    page = visit()
    result = colour(page, 100, 100)
    radio(page, "Before / after")
    page.locator("#compare").fill("80")
    assert colour(page, 100, 100) == IMAGE[100, 100].tolist()
    assert colour(page, 160, 100) != IMAGE[100, 160].tolist()
    page.get_by_role("radio", name="Paint right").check()
    radio(page, "Probability")
    page.wait_for_selector(DONE)
    assert page.locator("#heat option:checked").inner_text() == "right"
    assert sum(colour(page, 150, 100)) > 2 * sum(colour(page, 20, 100))
    assert page.locator("#opacity").is_disabled()
    waiting = hold(page, "/api/refine")
    radio(page, "Iterations")
    wait_for(page, waiting)
    assert page.locator("#step").is_disabled()
    assert page.locator("#play").is_disabled()
    assert page.inner_text("#step-name") == "Iteration –"
    release(page, waiting)
    page.wait_for_selector(DONE)
    assert page.inner_text("#step-name") == "Iteration 5"
    assert page.locator("#step").input_value() == "5"
    assert colour(page, 100, 100) == result
    page.locator("#step").fill("0")
    assert page.inner_text("#step-name") == "Iteration 0"
    assert redder(page, 20, 100) == redder(page, 160, 100)  # no opinion but at the strokes
    shown = texts(page, "#step-name")
    page.get_by_role("button", name="Play").click()
    page.get_by_text("Iteration 5", exact=True).wait_for()
    page.get_by_role("button", name="Play").wait_for()  # it has ended
    assert shown() == [f"Iteration {number}" for number in range(6)]


def test_two_tabs_do_not_disturb_each_other(visit: Callable[..., Any]) -> None:
    first = visit()
    second = first.context.new_page()
    second.goto(first.url)
    second.wait_for_selector(DONE)
    first.get_by_role("radio", name="Paint left").check()
    first.bring_to_front()
    draw(first, (150, 20), (170, 60), (150, 100))
    second.bring_to_front()
    draw(second, (10, 20), (12, 22))
    assert redder(first, 160, 100)
    assert not redder(second, 160, 100)


def test_a_visit_that_the_server_forgot_goes_on(
    visit: Callable[..., Any], address: tuple[Server, str]
) -> None:
    page = visit(refusal="410|503")
    page.get_by_role("radio", name="Paint left").check()
    draw(page, (150, 20), (170, 60), (150, 100))
    address[0].visits._visits.clear()
    refuse(page, "/api/marks")
    page.get_by_role("button", name="Reset").click()
    page.wait_for_selector("body[data-state=failed]")
    page.get_by_role("button", name="Reset").click()  # strokes that could not be sent are sent now
    page.wait_for_selector(DONE)
    assert redder(page, 160, 100)
    assert page.get_by_role("alert").is_hidden()


def test_keys_reach_every_control_and_paint(visit: Callable[..., Any]) -> None:
    page = visit()
    wanted = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, canvas, a')].filter((each) =>
            each.offsetParent && !each.disabled && each.tabIndex >= 0 &&
            !(each.type === 'radio' && !each.checked)).map((each, k) => (each.dataset.k = k))"""
    )
    seen = []
    for _ in wanted:
        page.keyboard.press("Tab")
        seen.append(page.evaluate("() => Number(document.activeElement.dataset.k)"))
    assert sorted(seen) == wanted
    page.locator("#open").focus()
    page.keyboard.press("Tab")
    outline = "() => getComputedStyle(document.activeElement).outline"
    assert "solid 3px" in page.evaluate(outline)  # where one is can be seen
    erase = page.get_by_role("radio", name="Erase")
    page.keyboard.press("e")  # a letter does something on the photograph alone
    page.locator("#size").press("e")
    assert not erase.is_checked()
    page.locator("#canvas").press("e")
    assert erase.is_checked()
    typed = {"key": "]", "ctrlKey": True, "altKey": True, "modifierAltGraph": True}
    page.locator("#canvas").dispatch_event("keydown", typed)  # as keyboards without a bracket do
    assert page.locator("#size").input_value() == "4"
    said = texts(page, "#status")
    page.keyboard.press("1")
    for key in (*["Shift+ArrowRight"] * 3, " ", *["ArrowDown"] * 8, *["ArrowUp"] * 16, " "):
        page.keyboard.press(key)
    page.wait_for_selector(DONE)
    assert "Brush lifted." in said()
    page.keyboard.press("Tab")  # the brush is no longer shown
    assert colour(page, 150, 60) == COLOURS[0]
    page.keyboard.press("Control+z")
    page.wait_for_selector(DONE)
    assert colour(page, 150, 60) != COLOURS[0]


def test_on_a_phone_nothing_is_cut_off_and_a_finger_paints(visit: Callable[..., Any]) -> None:
    page = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    outside = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input:not(.unseen)')]
            .filter((each) => each.offsetParent && each.getBoundingClientRect().right > 361)
            .map((each) => each.outerHTML)"""
    )
    assert outside == []
    overlapping = page.evaluate(
        """() => {
            const all = [...document.querySelectorAll('.stage button, .stage select, .stage span')]
                .filter((each) => each.offsetParent && each.textContent)
                .map((each) => [each, each.getBoundingClientRect()]);
            const meet = (a, b) => a.left < b.right && b.left < a.right &&
                a.top < b.bottom && b.top < a.bottom;
            return all.flatMap(([one, a]) => all.filter(([other, b]) =>
                one !== other && !one.contains(other) && !other.contains(one) && meet(a, b))
                .map(([other]) => `${one.textContent} and ${other.textContent}`));
        }"""
    )
    assert overlapping == []
    page.get_by_role("radio", name="Paint left").check()
    page.touchscreen.tap(*centre(page, 150, 60))
    page.wait_for_selector(DONE)
    assert colour(page, 150, 60) == COLOURS[0]


def test_it_is_dark_where_that_is_preferred_and_can_be_switched(visit: Callable[..., Any]) -> None:
    page = visit(color_scheme="dark")
    paper = "() => getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == "rgb(21, 23, 28)"
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(paper) == "rgb(246, 245, 242)"
