"""Which files belong to a report: its page lists them, with what they hold."""

import hashlib
import json
import re
from html import escape, unescape
from pathlib import Path

from pyro_elbo_lab.report.page.markup import GENERATOR

PAGE = "index.html"

_DIGITS = 32  # of a hash, in base 16

_LIST = '<meta name="files" content="{}">\n'
_FOUND = re.compile(r'<meta name="files" content="([^"]*)">\n')

Contents = dict[str, str]
"""A hash of what each file holds, by name."""


def listed(html: str, folder: Path) -> str:
    """The page of a report, with a list of itself and of all files in `folder`."""
    contents = {file.name: _digest(file) for file in folder.iterdir()}
    contents[PAGE] = _hash(html.encode())
    written = _LIST.format(escape(json.dumps(contents, sort_keys=True), quote=True))
    return html.replace(f"{GENERATOR}\n", f"{GENERATOR}\n{written}", 1)


def contents(folder: Path) -> Contents:
    """What the page in `folder` lists; nothing if there is no page of a report."""
    html = _text(folder / PAGE)
    found = _FOUND.search(html)
    if found is None or GENERATOR not in html:
        return {}
    try:
        return {str(name): str(digest) for name, digest in json.loads(unescape(found[1])).items()}
    except (ValueError, AttributeError):
        return {}


def unchanged(folder: Path, known: Contents) -> set[str]:
    """The names of those files that hold what they held when the report was written."""
    return {name for name, digest in known.items() if _digest(folder / name) == digest}


def _digest(path: Path) -> str:
    if path.is_symlink() or not path.is_file():
        return ""
    if path.name == PAGE:
        return _hash(_FOUND.sub("", _text(path), count=1).encode())
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return ""


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
