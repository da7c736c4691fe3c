"""Weights by name: the table, downloads from servers good and bad, and every use of a name."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import done, picture, run
from several_processes import Started
from weights_files import assert_same_state, refused, small

from deeplab.crf_settings import CRFSettings
from deeplab.errors import InputError
from deeplab.model import MODELS, backbones, build
from deeplab.weights import download, file, load_checkpoint, load_model, load_weights, registry

CONTENT = bytes(range(256)) * 400
HASH = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """Serves `content` under any path, until it is told to misbehave."""

    url: str = ""
    content: bytes = CONTENT
    status: int = 200
    sent: int | None = None  # of the bytes that it promises
    silent: bool = False
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    known = Server()
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known.asked.append(f"{self.command} {self.path}")
            if known.silent:
                released.wait(20)
                return
            self.send_response(known.status)
            self.send_header("Content-Length", str(len(known.content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(known.content[: known.sent])

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    for proxy in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        known.url = f"http://127.0.0.1:{listening.server_port}/weights.pth"
        yield known
        released.set()
        listening.shutdown()
        thread.join()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


# The table


def test_every_row_names_a_model_classes_and_settings_that_exist() -> None:
    for name, row in registry.table().items():
        assert not row.model or row.model in MODELS, name
        about = row.metadata()
        count = {"": 0, "voc2012": 21, "cocostuff": 182}[row.classes]
        assert len(about.get("class_names", ())) == len(about.get("palette", ())) == count, name
        assert bool(row.classes) == bool(row.model) != bool(row.backbone), name
        assert not row.backbone or backbones.named(row.backbone), name
        CRFSettings().changed(row.crf)
        assert row.path.suffix in (".pth", ".caffemodel"), name
        assert bool(row.member) == row.url.endswith((".zip", ".whl")), name
        assert row.title, name
        assert row.licence, name


def test_rows_of_torchvision_say_what_torchvision_says(torchvision: Any) -> None:
    theirs = {
        weights.url: weights.meta
        for name in torchvision.models.list_models()
        for weights in torchvision.models.get_model_weights(name)
    }
    rows = [row for row in registry.table().values() if "pytorch.org" in row.url]
    assert len(rows) == 8
    for row in rows:
        about = theirs[row.url]
        (score,) = [
            metrics[key]
            for metrics in about["_metrics"].values()
            for key in ("acc@1", "miou")
            if key in metrics
        ]
        assert row.score.startswith(f"{score:.{3 if not row.model else 1}f} "), row.name
        assert row.megabytes == about["_file_size"], row.name
        assert row.url.endswith(f"-{row.sha256}.pth"), row.name
        assert not row.classes or about["categories"][1:] == list(row.metadata()["class_names"])[1:]


def test_names_are_of_one_file_each_and_no_builder_is_meant() -> None:
    paths = [row.path for row in registry.table().values()]
    assert len(set(paths)) == len(paths)
    assert not set(registry.table()) & {*MODELS, registry.SCENES}


def test_files_lie_in_deeplab_home_or_beside_those_of_torch_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = registry.named("resnet50_imagenet")
    monkeypatch.delenv("DEEPLAB_HOME", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert row.path == tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    monkeypatch.setenv("DEEPLAB_HOME", str(tmp_path))
    assert row.path == tmp_path / "weights" / "resnet50-0676ba61.pth"


# Downloads


@pytest.mark.parametrize("sha256", ["", HASH[:8], HASH])
def test_a_download_is_whole_and_leaves_its_hash_beside_it(
    server: Server, tmp_path: Path, sha256: str
) -> None:
    path = tmp_path / "new" / "weights.pth"
    download.fetch(server.url, path, sha256=sha256)
    assert path.read_bytes() == CONTENT
    assert download.recorded(path) == HASH
    assert files(tmp_path) == {"weights.pth", "weights.pth.sha256"}


def wrong_bytes(server: Server) -> None:
    server.content = b"something else"


def cut_off(server: Server) -> None:
    server.sent = 1000


def login_page(server: Server) -> None:
    server.content = b"<!DOCTYPE html><html>Log in to this network</html>"


def nothing(server: Server) -> None:
    server.content = b""


def missing(server: Server) -> None:
    server.status = 404


def slow(server: Server) -> None:
    server.silent = True


def nobody(server: Server) -> None:
    server.url = "http://127.0.0.1:9/weights.pth"


@pytest.mark.parametrize(
    ("misbehave", "sha256", "said"),
    [
        (wrong_bytes, HASH[:8], "the download has another hash than it must"),
        (cut_off, HASH[:8], "the download has another hash than it must"),
        (cut_off, "", "the download was cut off (101400 of 102400 bytes are missing)"),
        (login_page, "", "must give weights, not a web page in place of the file; fetch it again"),
        (nothing, "", "must give weights, not an empty file"),
        (missing, "", "the server says 404 Not Found"),
        (slow, "", "cannot be reached (timed out)"),
        (nobody, "", "cannot be reached (Connection refused)"),
    ],
)
def test_a_server_that_misbehaves_is_named_in_one_line_and_leaves_nothing(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    misbehave: Callable[[Server], None],
    sha256: str,
    said: str,
) -> None:
    monkeypatch.setattr(download, "PATIENCE", 0.5)
    misbehave(server)
    path = tmp_path / "weights.pth"
    message = refused(lambda: download.fetch(server.url, path, sha256=sha256))
    assert message.startswith(f"{server.url}: {said}")
    assert f"put the file there yourself as {path}" in message
    assert not files(tmp_path)


def test_the_next_download_has_to_be_the_same_where_no_hash_is_published(
    server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    download.fetch(server.url, path)
    path.unlink()
    wrong_bytes(server)
    message = refused(lambda: download.fetch(server.url, path))
    assert f"{HASH}; if the source has changed it, delete {path}.sha256" in message
    assert not path.exists()


def test_a_full_disk_is_named_by_the_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.hub, "download_url_to_file", full)
    path = tmp_path / "weights.pth"
    message = refused(lambda: download.fetch(server.url, path))
    assert message.startswith(f"{path}: cannot be written (No space left on device)")


def test_a_folder_that_cannot_be_is_named_by_the_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file" / "weights" / "weights.pth"
    (tmp_path / "file").write_bytes(b"")
    message = refused(lambda: download.fetch(server.url, path))
    assert message.startswith(f"{path}: cannot be written (Not a directory); set DEEPLAB_HOME")


def test_offline_nothing_is_asked_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPLAB_OFFLINE", "1")
    message = refused(lambda: download.fetch(server.url, tmp_path / "weights.pth"))
    assert "DEEPLAB_OFFLINE forbids to download it" in message
    assert not server.asked


def test_a_member_is_taken_out_of_an_archive(server: Server, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("some/folder/train2.caffemodel", CONTENT)
        made.writestr("test.prototxt", b"text")
    server.content = archive.getvalue()
    path = tmp_path / "named-train2.caffemodel"
    download.fetch(server.url, path, member="train2.caffemodel")
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == {path.name, f"{path.name}.sha256"}
    message = refused(lambda: download.fetch(server.url, tmp_path / "x", member="init.caffemodel"))
    assert "not the archive that it must be: it has no init.caffemodel" in message
    server.content = CONTENT
    message = refused(lambda: download.fetch(server.url, tmp_path / "x", member="a.caffemodel"))
    assert "not the archive that it must be" in message


FETCH = """
import sys
from pathlib import Path
from deeplab.weights import download
download.fetch(sys.argv[1], Path(sys.argv[2]))
"""


def test_two_processes_may_download_at_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    both = [Started(("-c", FETCH, server.url, str(path))) for _ in range(2)]
    for process in both:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == {"weights.pth", "weights.pth.sha256"}


# A name in place of a path


@pytest.fixture
def small_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> registry.Named:
    """A small model of VOC's classes as a state dict, to be downloaded by its name."""
    monkeypatch.setenv("DEEPLAB_HOME", str(tmp_path / "home"))
    content = io.BytesIO()
    torch.save(small(21).state_dict(), content)
    server.content = content.getvalue()
    row = replace(
        registry.named("deeplab_v2_resnet101_msc_voc12"), name="tiny", url=server.url, title="tiny"
    )
    monkeypatch.setattr(registry, "table", lambda: {"tiny": row})
    return row


def test_a_name_serves_as_a_path_and_is_downloaded_once(
    small_named: registry.Named, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = load_checkpoint("tiny")
    assert "Downloading tiny (size not stated; MIT" in capsys.readouterr().err
    assert opened.path == small_named.path
    assert_same_state(opened.model, small(21))
    assert opened.metadata["class_names"][15] == "person"
    assert opened.metadata["crf"] == dict(small_named.crf)
    model = small(21, seed=1)
    load_weights(model, "tiny")
    assert_same_state(model, small(21))
    assert [line for line in server.asked if line.startswith("GET")] == ["GET /weights.pth"]


def test_a_file_of_that_name_comes_first(
    small_named: registry.Named, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").write_bytes(b"mine")
    assert registry.path_of("tiny") == Path("tiny")
    assert not server.asked


def test_scenes_are_the_shipped_weights() -> None:
    assert file.named_path("scenes") == file.SHIPPED
    assert_same_state(load_model("scenes"), load_model())


def test_the_commands_list_show_download_and_verify(small_named: registry.Named) -> None:
    assert "tiny" in done("weights", "list").stdout
    missing = run("weights", "path", "tiny")
    assert missing.exit_code == 2
    assert "deeplab weights download tiny" in missing.stderr
    assert small_named.url in done("weights", "show", "tiny").stdout
    assert done("weights", "download", "tiny").stdout == f"{small_named.path}\n"
    assert done("weights", "path", "tiny").stdout == f"{small_named.path}\n"
    assert "as it was downloaded" in done("weights", "verify").stdout
    small_named.path.write_bytes(b"damaged")
    damaged = run("weights", "verify")
    assert damaged.exit_code == 1
    assert "DIFFERENT" in damaged.stdout


def test_a_member_put_there_by_hand_is_not_held_against_the_hash_of_its_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPLAB_HOME", str(tmp_path))
    row = registry.named("tf_efficientnet_lite0_imagenet")
    row.path.parent.mkdir()
    row.path.write_bytes(CONTENT)
    assert done("weights", "verify").stdout == f"{row.path}  no hash to compare with\n"


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    result = run("weights", "show", "resnet51")
    assert result.exit_code == 2
    assert "no weights are called 'resnet51'; there are deeplab_v2" in result.stderr
    with pytest.raises(InputError, match="no such weights file"):
        load_model("resnet51")


@pytest.fixture
def mobilenet_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> registry.Named:
    """What segments photographs on a CPU, from the server and with random weights."""
    monkeypatch.setenv("DEEPLAB_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    content = io.BytesIO()
    torch.save(build("deeplab_v3_mobilenet").state_dict(), content)
    server.content = content.getvalue()
    row = replace(registry.named("deeplab_v3_mobilenet_coco"), url=server.url, sha256="")
    monkeypatch.setattr(registry, "table", lambda: {row.name: row})
    return row


def test_segment_takes_weights_for_photographs_and_says_what_it_downloads(
    mobilenet_named: registry.Named, tmp_path: Path
) -> None:
    photo = picture(tmp_path / "photo.png", 40, 50)
    command = ("segment", photo, "--no-crf", "--device", "cpu", "--out", tmp_path / "out")
    first, second = done(*command), done(*command)
    said = f"Downloading {mobilenet_named.name} (42 MiB; BSD-3-Clause (torchvision)) from"
    assert first.stderr.startswith(f"{said} {mobilenet_named.url}")
    assert "Downloading" not in second.stderr
    assert any(name in second.stdout for name in mobilenet_named.metadata()["class_names"])


def test_segment_without_weights_and_network_names_the_cures(
    mobilenet_named: registry.Named, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = picture(tmp_path / "photo.png", 40, 50)
    monkeypatch.setenv("DEEPLAB_OFFLINE", "0")  # which --offline overrides
    result = run("--offline", "segment", photo, "--device", "cpu", "--out", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {mobilenet_named.url}: DEEPLAB_OFFLINE forbids to download it")
    assert f"put the file there yourself as {mobilenet_named.path}" in line
    assert "or name other weights, such as scenes" in line
    assert not (tmp_path / "out").exists()
