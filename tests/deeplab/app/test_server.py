"""What the server answers, what it refuses, and that nobody else can ask it."""

import io
import re
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running_app import SETTINGS, Client, halves, npz, png, running, softmax

from deeplab import photographs
from deeplab.app import inputs, server
from deeplab.app.guard import HEADERS
from deeplab.app.inputs import Photograph
from deeplab.app.refining import Problem, Wish, refined
from deeplab.app.server import FILES, Server
from deeplab.crf_settings import CRFSettings
from deeplab.data import outputs
from deeplab.predict import Prediction

CLASSES = [{"name": "left", "colour": [200, 0, 0]}, {"name": "right", "colour": [0, 0, 200]}]

ONE, A = "expected 2 to 255", inputs.LABEL_MAP


def of_a_later_version(archive: bytes) -> bytes:
    """A zip file whose entries say that they need a version of the format that is yet to come."""
    entry = archive.index(b"PK\1\2")
    return archive[: entry + 6] + b"\xff" + archive[entry + 7 :]


@pytest.fixture
def marked(client: Client) -> Client:
    """A client with an opened picture and two strokes on it."""
    image, marks = halves()
    client.open(image)
    assert client.post("/api/marks", marks.tobytes()).status == 200
    return client


def test_the_page_is_these_files_and_no_others(client: Client) -> None:
    for path, (name, kind) in FILES.items():
        answer = client.ask("GET", path)
        assert (answer.status, answer.headers["content-type"]) == (200, kind)
        assert answer.content == (Path(server.__file__).parent / "static" / name).read_bytes()
    stored = {path.name for path in (Path(server.__file__).parent / "static").iterdir()}
    assert stored == {name for name, _ in FILES.values()}


@pytest.mark.parametrize(
    "path",
    [
        "/server.py",
        "/static/index.html",
        "/../server.py",
        "/..%2fserver.py",
        "/%2e%2e/%2e%2e/pyproject.toml",
        "//etc/passwd",
        "/etc/passwd",
        "/app.js/../../server.py",
        "/index.html",
        "/api",
    ],
)
def test_no_other_path_can_be_read(client: Client, path: str) -> None:
    answer = client.ask("GET", path)
    assert answer.status == 404
    assert answer.error == "there is no such page"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/"), ("GET", "/api/open"), ("PUT", "/"), ("OPTIONS", "/api/open")],
)
def test_other_methods_are_refused(client: Client, method: str, path: str) -> None:
    assert client.ask(method, path).status == 405


@pytest.mark.parametrize("path", ["/", "/api/about", "/nothing"])
def test_every_answer_forbids_what_the_page_does_not_need(client: Client, path: str) -> None:
    headers = client.ask("GET", path).headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in headers["content-security-policy"]
    assert not any(name.startswith("access-control") for name in headers)


def test_the_page_asks_nothing_of_other_machines() -> None:
    for name, _ in FILES.values():
        text = (Path(server.__file__).parent / "static" / name).read_text()
        assert set(re.findall(r"\w*:?//\w\S*", text)) <= {'http://www.w3.org/2000/svg"'}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example", "localhost.evil:1"]
)
def test_a_foreign_name_of_this_address_is_refused(client: Client, host: str) -> None:
    """DNS rebinding: the name of a page elsewhere leads here."""
    answer = client.ask("GET", "/", headers={"Host": host})
    assert answer.status == 403
    assert "must be an address in numbers or a name of this machine" in answer.error


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost:99", "LocalHost", "[::1]:99", "192.168.1.5", socket.gethostname()],
)
def test_addresses_and_localhost_are_names_of_this_machine(client: Client, host: str) -> None:
    assert client.ask("GET", "/", headers={"Host": host}).status == 200


def test_a_name_that_the_command_line_gives_is_one_too_and_no_other_is() -> None:
    page = Server()
    with running(page, names=["paint.example"]) as port:
        client = Client(port)
        for host, status in [("paint.example:1", 200), ("PAINT.example", 200), ("127.0.0.1", 200)]:
            assert client.ask("GET", "/", headers={"Host": host}).status == status
        for host in ("localhost", "x.paint.example", "paint.example.com", "paint.example:1:2"):
            assert client.ask("GET", "/", headers={"Host": host}).status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_requests_of_other_sites_are_refused(client: Client, headers: dict[str, str]) -> None:
    answer = client.ask("POST", "/api/open?example=coffee", headers=headers)
    assert answer.status == 403
    assert "other sites are refused" in answer.error


def test_requests_of_the_page_are_answered(client: Client) -> None:
    headers = {"Origin": f"http://127.0.0.1:{client.port}", "Sec-Fetch-Site": "same-origin"}
    assert client.ask("POST", "/api/open?example=chelsea", headers=headers).status == 200
    headers["Origin"] = f"http://evil.127.0.0.1:{client.port}"
    assert client.ask("POST", "/api/open?example=chelsea", headers=headers).status == 403
    link = {"Sec-Fetch-Site": "cross-site"}  # of another page, which may be followed
    assert client.ask("GET", "/", headers=link).status == 200


def test_about_names_the_examples_and_the_start_of_each_slider(client: Client) -> None:
    about = client.ask("GET", "/api/about").json
    assert [each["name"] for each in about["examples"]] == list(photographs.EXAMPLES)
    assert about["start"]["scribbles"]["bilateral_sigma_xy"] == 20
    network = about["start"]["network"]
    assert Wish.of(network).settings == CRFSettings()  # those of deeplab refine
    assert (about["network"], about["local"]) == (False, True)


@pytest.mark.parametrize("name", photographs.EXAMPLES)
def test_examples_open_with_scribbles_and_names(client: Client, name: str) -> None:
    about, (picture, marks) = client.post(f"/api/open?example={name}").unpacked()
    image, annotation, names = photographs.example(name)
    assert np.array_equal(np.array(Image.open(io.BytesIO(picture.tobytes()))), image)
    assert np.array_equal(marks.reshape(image.shape[:2]) + np.uint8(1), annotation.labels)
    assert [each["name"] for each in about["classes"]] == names
    assert len(set(names)) == len(photographs.EXAMPLES[name].classes)


def test_a_photograph_is_refined_as_elsewhere(marked: Client) -> None:
    image, marks = halves()
    about, (labels, heat) = marked.refine(heat=1)
    expected = refined(Problem(image, marks), Wish.of(SETTINGS))
    assert (about["width"], about["height"], about["whole"]) == (60, 40, True)
    assert np.array_equal(labels.reshape(40, 60), expected.labels)
    assert np.array_equal(heat.reshape(40, 60), expected.heat(1))


def test_each_iteration_can_be_had(marked: Client) -> None:
    about, frames = marked.refine(steps=True)
    assert about["frames"] == len(frames) == 4
    assert np.array_equal(frames[-1], marked.refine()[1][0])


def test_a_preview_is_reduced(client: Client) -> None:
    image, marks = halves(300, 400)
    client.open(image)
    client.post("/api/marks", marks.tobytes())
    about, (labels,) = client.refine(preview=True)
    assert (about["width"], about["height"], about["whole"]) == (200, 150, False)
    assert (labels.reshape(150, 200) == (np.arange(200) >= 100)).mean() > 0.95


def test_a_large_photograph_is_reduced_and_says_so(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "WORKING", 600)
    about = client.open(halves()[0])
    assert (about["width"], about["height"]) == (30, 20)
    assert about["notes"] == ["reduced from 60 x 40 to 30 x 20 pixels"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"hello", "notes.txt: no picture could be recognised"),
        ("empty.png", b"", "empty.png: the file is empty"),
        ("half.png", png(halves()[0])[:300], "half.png: the image is truncated or damaged"),
        ("big.png", png(np.zeros((1001, 1000), np.uint8)), "above the limit of 1; make it smaller"),
        ("../../etc/passwd", b"x", "passwd: no picture"),
        ("", b"x", "photograph: no picture"),
        (f"{'x' * 5000}.png", b"x", "xx.png: no picture"),
        ("a%0Ab%00.png", b"", "a b"),
    ],
)
def test_bad_photographs_are_named_and_explained(
    client: Client, name: str, content: bytes, message: str
) -> None:
    answer = client.post(f"/api/open?name={name}", content)
    assert answer.status == 400
    assert message in answer.error
    assert "/tmp" not in answer.error
    assert "\n" not in answer.error
    assert len(answer.error) < 400


def test_probabilities_take_the_place_of_scribbles(marked: Client) -> None:
    values = softmax(40, 60, 3)
    names = np.array(["a", "b", "c"])
    palette = np.eye(3, dtype=np.uint8) * 200
    content = npz(probabilities=values, class_names=names, palette=palette)
    about, _ = marked.post("/api/result?name=r.npz", content).unpacked()
    assert about["probabilities"] is True
    assert about["classes"][1] == {"name": "b", "colour": [0, 200, 0]}
    found = marked.refine()[1][0]
    expected = refined(Problem(*halves(), probabilities=values), Wish.of(SETTINGS))
    assert np.array_equal(found, expected.labels.ravel())
    assert marked.post("/api/marks", halves()[1].tobytes()).status == 200  # back to scribbles
    assert set(marked.refine()[1][0]) == {0, 1}


def test_a_label_map_becomes_scribbles(marked: Client) -> None:
    labels = np.where(np.arange(60) < 30, 0, 2)[None].repeat(40, 0).astype(np.uint8)
    labels[:5] = 255
    content = png(labels, outputs.voc_palette())
    about, (marks,) = marked.post("/api/result?name=labels.png", content).unpacked()
    assert about["probabilities"] is False
    assert about["classes"][2] == {"name": "class 2", "colour": [0, 128, 0]}
    assert np.array_equal(marks.reshape(40, 60), labels)
    assert set(marked.refine()[1][0]) == {0, 2}


def test_a_mask_and_a_picture_of_scribbles_are_read_as_the_command_line_reads_them(
    marked: Client,
) -> None:
    right = np.arange(60) >= 30
    mask = np.where(right, 255, 0)[None].repeat(40, 0).astype(np.uint8)
    for content in (png(mask), png(mask > 0), png(np.stack([mask] * 3, 2))):
        about, (marks,) = marked.post("/api/result?name=mask.png", content).unpacked()
        assert [each["name"] for each in about["classes"]] == ["background", "foreground"]
        assert np.array_equal(marks.reshape(40, 60), mask // 255)
    strokes = np.zeros((40, 60, 3), np.uint8)
    strokes[4:7, 5:20], strokes[4:7, 40:50] = (10, 20, 200), (250, 0, 0)
    for k in range(4):  # soft edges
        strokes[20, k] = np.array([50, 0, 0]) * (k + 1)
    about, (marks,) = marked.post("/api/result?name=strokes.png", png(strokes)).unpacked()
    assert about["classes"][-1] == {"name": "#0a14c8", "colour": [10, 20, 200]}
    assert set(marks.reshape(40, 60)[5]) == {255, 4, 5}
    assert "as soft edges (antialiasing) leave them" in about["notes"][0]
    assert "--" not in about["notes"][0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.npz", npz(probabilities=softmax(30, 60, 3)), "r.npz: shape [3, 30, 60] does not fit"),
        ("r.npz", b"PK not", "r.npz: cannot be read as .npy or .npz"),
        ("r.npy", npz(a=np.zeros(3, np.float32))[:40], "r.npy: cannot be read"),
        ("r.npz", npz(probabilities=9 * softmax(40, 60, 3)), "apply a softmax"),
        ("r.png", png(halves(20, 20)[1]), "20"),
        (
            "r.png",
            png(np.zeros((40, 60), np.uint8)),
            f"r.png: 1 class, {ONE} (255 means unsure); {A}",
        ),
        ("r.png", png(halves()[0]), f"at most 255 labels are possible; {A}"),
        ("r.exe", b"MZ", "r.exe: must be probabilities (.npz, .npy) or a label map (.png)"),
        ("", b"", "the result: must be probabilities"),
        ("big.png", png(np.zeros((1001, 1000), np.uint8)), "above the limit of 1; make it smaller"),
        ("r.npz", of_a_later_version(npz(p=softmax(40, 60, 3))), "r.npz: cannot be read"),
        (f"{'x' * 5000}.exe", b"MZ", "xx.exe: must be probabilities"),
    ],
)
def test_bad_results_are_named_and_explained(
    marked: Client, name: str, content: bytes, message: str
) -> None:
    answer = marked.post(f"/api/result?name={name}", content)
    assert answer.status == 400
    assert message in answer.error
    assert "/tmp" not in answer.error
    assert len(answer.error) < 400
    assert set(marked.refine()[1][0]) == {0, 1}  # nothing is lost


def test_a_label_map_of_more_classes_than_colours_gets_the_missing_ones(marked: Client) -> None:
    labels = np.where(np.arange(60) < 30, 0, 7)[None].repeat(40, 0).astype(np.uint8)
    content, picture = io.BytesIO(), Image.fromarray(labels)
    picture.putpalette([9, 9, 9, 8, 8, 8])
    picture.save(content, "BMP")
    about, _ = marked.post("/api/result?name=labels.bmp", content.getvalue()).unpacked()
    colours = [each["colour"] for each in about["classes"]]
    assert colours == [[9, 9, 9], [8, 8, 8], *outputs.voc_palette()[2:8].tolist()]


def test_an_archive_that_unpacks_to_too_much_is_refused(
    marked: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "UNPACKED", 10_000)
    content = npz(probabilities=np.zeros((3, 40, 60), np.float32))
    assert len(content) < 1000
    error = marked.post("/api/result?name=bomb.npz", content).error
    assert error.startswith("bomb.npz: unpacked it has 0 MB")


def test_too_many_probabilities_are_refused(
    marked: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "VALUES", 7000)
    error = marked.post("/api/result?name=r.npz", npz(p=softmax(40, 60, 3))).error
    assert "3 classes on 60 x 40 pixels" in error


def test_too_large_a_request_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "UPLOAD", 1000)
    answer = client.post("/api/open?name=a.png", bytes(1001))
    assert (answer.status, answer.error) == (413, "this is too large: at most 1000 bytes are read")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the request must be JSON"),
        (b"[" * 5000, "the request must be JSON"),
        (b"\xff", "the request must be JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"iterations": 2.5}', "iterations must be an integer"),
        (b'{"gaussian_weight": %s}' % (b"9" * 5000), "the request must be JSON"),
        (b'{"heat": "sky"}', "heat must be the number of a class, not 'sky'"),
    ],
)
def test_requests_that_are_none_say_why(marked: Client, body: bytes, message: str) -> None:
    answer = marked.post("/api/refine", body)
    assert answer.status == 400
    assert message in answer.error


def test_scribbles_of_another_size_are_refused(marked: Client) -> None:
    assert "must be 2400 bytes, one a pixel, not 7" in marked.post("/api/marks", bytes(7)).error
    assert marked.post("/api/marks", bytes(2401)).status == 413


def test_a_download_has_the_type_of_its_kind(marked: Client) -> None:
    answer = marked.post("/api/download?file=mask.png", {**SETTINGS, "classes": CLASSES})
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    assert np.array_equal(
        np.array(Image.open(io.BytesIO(answer.content))).ravel(), marked.refine()[1][0]
    )
    assert "file must be one of" in marked.post("/api/download?file=x", {"classes": CLASSES}).error


def test_what_the_command_line_gives_is_offered_first() -> None:
    image, marks = halves()
    given = Photograph("given.png", image, marks)

    def network(image: np.ndarray) -> Prediction:
        return Prediction.of(softmax(*image.shape[:2], 3))

    palette = outputs.NamedPalette(outputs.voc_palette(), ["a", "b", "c"])
    page = Server(given, network, palette)  # type: ignore[arg-type]
    with running(page) as port:
        client = Client(port)
        about = client.ask("GET", "/api/about").json
        assert (about["given"], about["network"]) == (["given.png"], True)
        opened, _ = client.post("/api/open?given=1").unpacked()
        client.token = opened["visit"]
        assert opened["name"] == "given.png"
        segmented, _ = client.post("/api/segment").unpacked()
        assert [each["name"] for each in segmented["classes"]] == ["a", "b", "c"]
        assert set(client.refine()[1][0]) == {0, 1, 2}


def test_without_weights_nothing_is_segmented(marked: Client) -> None:
    assert "deeplab app --weights" in marked.post("/api/segment").error


@pytest.mark.parametrize("path", ["marks", "result", "segment", "refine", "download"])
def test_a_visit_that_is_over_says_so(client: Client, path: str) -> None:
    client.token = "unknown"
    answer = client.post(f"/api/{path}", {})
    assert (answer.status, answer.error) == (
        410,
        "this photograph is no longer open; open it again",
    )


def test_opening_another_photograph_ends_the_visit(served: tuple[Server, int]) -> None:
    client = Client(served[1])
    client.open(halves()[0])
    first, count = client.token, len(served[0].visits)
    client.open(halves()[0])
    assert len(served[0].visits) == count
    assert Client(served[1], first).post("/api/refine", {}).status == 410


def test_a_request_that_does_not_come_is_given_up(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "READING", 0.1)
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as slow:
        slow.sendall(
            b"POST /api/open?name=a.png HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nx"
        )
        assert slow.recv(1000).startswith(b"HTTP/1.1 503")


def test_a_failure_of_the_server_is_an_answer(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(inputs, "open_example", fail)
    answer = client.post("/api/open?example=coffee")
    assert answer.status == 500
    assert b"secret" not in answer.content
    assert answer.headers["content-security-policy"] == HEADERS["content-security-policy"]


def test_what_is_asked_while_the_server_warms_up_comes_before_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, computed, page = threading.Event(), list[str](), Server()
    asked = threading.Event()

    def compute(problem: Problem, _: Wish) -> None:
        begun.set()
        assert asked.wait(20)
        assert problem.marks.size > 4096  # small pictures run other code
        computed.append(f"{len(problem.classes)} labels")

    monkeypatch.setattr(server, "refined", compute)
    page.warm_up()
    assert begun.wait(20)
    page.computing.thread.submit(computed.append, "asked")
    asked.set()
    for _ in range(400):
        if len(computed) == 4:
            break
        time.sleep(0.01)
    page.close()
    assert computed == ["2 labels", "asked", "3 labels", "6 labels"]
