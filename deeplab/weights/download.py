"""Files from the network: whole and checked, or not there at all.

The transfer is torch.hub's, with its progress bar and the proxies of the environment. Two processes
may fetch the same file at once. The SHA-256 of what was fetched stays beside it, as FILE.sha256:
where the source publishes no hash, it has to be the same the next time.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import socket
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import torch

from deeplab.errors import InputError
from deeplab.weights import foreign
from deeplab.whole_file import whole_file

OFFLINE = "DEEPLAB_OFFLINE"
PATIENCE = 30.0  # seconds without a byte
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_FOLDER = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG),
)


def fetch(url: str, path: Path, said: str = "", *, member: str = "", sha256: str = "") -> None:
    """Download `url` to `path`, or of a zip archive there its `member`.

    said: printed on standard error before it begins.
    sha256: what the hash of the download must begin with; empty where its source publishes none.

    Raises InputError, and leaves nothing behind: no network, a cut connection, another hash than
    `sha256` or than at an earlier download, a web page or other file that is no weights, no room,
    an archive without the member, or DEEPLAB_OFFLINE is set.
    """
    mend = f"put {f'its {member}' if member else 'the file'} there yourself as {path}, or name "
    mend += "other weights, such as scenes"
    if offline():
        raise InputError(f"{url}: {OFFLINE} forbids to download it; {mend}")
    if said:
        print(said, file=sys.stderr)
    with _one_line(url, path, mend):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as folder:
            part = Path(folder, "part")
            _transfer(url, part, sha256)
            if member:
                part = _extracted(part, member)
            found, earlier = of_file(part), recorded(path)
            if not sha256 and earlier not in ("", found):
                raise InputError(
                    f"{url}: has another hash, {found}, than when it was first downloaded, "
                    f"{earlier}; if the source has changed it, delete {_record(path)}"
                )
            if what := foreign.kind(part):  # such as the page of a network that wants a login
                raise InputError(f"{url}: must give weights, not {what}, or {mend}")
            with whole_file(_record(path)) as file:
                file.write(f"{found}\n".encode())
            os.replace(part, path)


def offline() -> bool:
    """Whether DEEPLAB_OFFLINE forbids downloads."""
    return os.environ.get(OFFLINE, "") not in ("", "0")


def of_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded(path: Path) -> str:
    """The SHA-256 of the file as it was downloaded; empty where it was not."""
    with suppress(OSError):
        return _record(path).read_text(encoding="ascii").strip()
    return ""


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _transfer(url: str, part: Path, sha256: str) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        torch.hub.download_url_to_file(url, str(part), sha256 or None, sys.stderr.isatty())
        if not sha256:  # torch.hub takes a connection that was cut for the end of the file
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
                size = answer.headers.get("Content-Length")
            missing = 0 if size is None else int(size) - part.stat().st_size
            if missing:
                raise http.client.HTTPException(f"{missing} of {size} bytes are missing")
    finally:
        socket.setdefaulttimeout(before)


def _extracted(archive: Path, member: str) -> Path:
    with zipfile.ZipFile(archive) as files:
        name = next((n for n in files.namelist() if PurePosixPath(n).name == member), None)
        if name is None:
            raise zipfile.BadZipFile(f"it has no {member}")
        part = archive.with_name("member")
        with files.open(name) as inside, open(part, "wb") as file:
            shutil.copyfileobj(inside, file)
    return part


@contextmanager
def _one_line(url: str, path: Path, mend: str) -> Iterator[None]:
    """What can go wrong with a download, as InputError."""
    try:
        yield
    except urllib.error.HTTPError as error:
        raise InputError(f"{url}: the server says {error.code} {error.reason}; {mend}") from error
    except (http.client.HTTPException, RuntimeError) as error:
        # torch.hub raises RuntimeError for another hash.
        what = "has another hash than it must" if "hash" in str(error) else "was cut off"
        raise InputError(f"{url}: the download {what} ({error}); try again, or {mend}") from error
    except zipfile.BadZipFile as error:
        raise InputError(f"{url}: not the archive that it must be: {error}; {mend}") from error
    except OSError as error:
        cause = getattr(error, "reason", error)  # of an URLError
        reason = getattr(cause, "strerror", None) or cause
        if error.errno in NO_ROOM:
            raise InputError(f"{path}: cannot be written ({reason}); make room") from error
        if error.errno in NO_FOLDER:
            raise InputError(
                f"{path}: cannot be written ({reason}); set DEEPLAB_HOME to a folder that can be"
            ) from error
        raise InputError(f"{url}: cannot be reached ({reason}); {mend}") from error
