"""Let the pages link to files of the repository beside docs/, on the site as in the repository.

A file that a page links to becomes part of the site as repository/PATH, and Markdown among these a
page, whose own links go the same way. Used by mkdocs.yml as a hook.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
BESIDE = "repository"  # where such files lie on the site


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that pages link to, and those that these link to."""
    root = Path(config.config_file_path).parent
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    pages.append("EQUATIONS.md")  # which the navigation names
    seen = set(pages)
    _add(files, config, root, "EQUATIONS.md")
    while pages:
        page = pages.pop()
        for link in LINK.findall((root / page).read_text()):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
            if target.startswith("docs/") or target in seen or not (root / target).is_file():
                continue
            seen.add(target)
            _add(files, config, root, target)
            if target.endswith(".md"):
                pages.append(target)
    return files


def _add(files: Files, config: MkDocsConfig, root: Path, path: str) -> None:
    place = f"{BESIDE}/{path}"
    files.append(File.generated(config, place, abs_src_path=str(root / path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between places in the repository into links between places on the site."""
    here = page.file.src_uri
    origin = here.removeprefix(f"{BESIDE}/") if here.startswith(BESIDE) else f"docs/{here}"

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link[0]))
        place = target.removeprefix("docs/") if target.startswith("docs/") else f"{BESIDE}/{target}"
        if files.get_file_from_path(place) is None:
            return link[0]  # mkdocs says that it leads nowhere
        return posixpath.relpath(place, posixpath.dirname(here) or ".")

    return LINK.sub(moved, markdown)
