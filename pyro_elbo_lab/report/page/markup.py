"""The parts a self-contained HTML page is made of: no network, prints, reads on a phone."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

GENERATOR = '<meta name="generator" content="pyro_elbo_lab">'

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_ICONS = {"good": "\N{CHECK MARK}", "fair": "\N{ALMOST EQUAL TO}", "bad": "\N{MULTIPLICATION X}"}

_PRINTED_ROWS = 40  # as in page.css


class Cell(NamedTuple):
    """One cell of a table: its HTML and its sort key."""

    html: str
    key: float | str

    @property
    def is_text(self) -> bool:
        return isinstance(self.key, str)


class Section(NamedTuple):
    """One section of the page: its heading and its HTML."""

    heading: str
    html: str


def page(title: str, lede: str, sections: Iterable[Section]) -> str:
    """A whole document with everything it needs inside; empty sections are left out."""
    shown = [section for section in sections if section.html]
    links = "".join(
        f'<li><a href="#{_slug(heading)}">{escape(heading)}</a></li>' for heading, _ in shown
    )
    body = "\n".join(
        f'<section aria-labelledby="{(slug := _slug(heading))}">\n'
        f'<h2 id="{slug}">{escape(heading)}</h2>\n{html}\n</section>'
        for heading, html in shown
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{GENERATOR}\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_beside('page.css')}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n{lede}\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n'
        f"<main>\n{body}\n</main>\n<script>\n{_beside('page.js')}</script>\n</body>\n</html>\n"
    )


def section(heading: str, *parts: str) -> Section:
    """A section of the parts that are not empty."""
    return Section(heading, "\n".join(part for part in parts if part))


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text, of the class `kind`: "soft", "lede" or "warning"."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(text)}</p>"


def card(
    name: str, swatch: str, tone: str, kind: str, sentence: str, facts: Mapping[str, str]
) -> str:
    """A verdict; `tone` is good, fair, bad or unknown, and the facts are HTML."""
    icon = _ICONS.get(tone, "?")
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{v}</dd></div>" for k, v in facts.items())
    return (
        f'<li class="card {tone}"><h3>{swatch}{escape(name)}</h3>'
        f'<p class="kind"><span aria-hidden="true">{icon}</span> {escape(kind)}</p>'
        f'<p>{escape(sentence)}</p><dl class="facts">{items}</dl></li>'
    )


def cards(items: Iterable[str]) -> str:
    """Cards side by side where there is room."""
    content = "\n".join(items)
    return f'<ul class="cards">\n{content}\n</ul>'


def swatch(color: str, outline: Sequence[tuple[float, float]], dashes: str) -> str:
    """A line with a marker, as a key to the figures; `outline` within ±0.5."""
    points = " ".join(f"{15 + 9 * x:.2f},{7 - 9 * y:.2f}" for x, y in outline)
    return (
        f'<svg class="swatch" viewBox="0 0 30 14" aria-hidden="true" focusable="false">'
        f'<line x1="0" y1="7" x2="30" y2="7" stroke="{color}" stroke-width="2" '
        f'stroke-dasharray="{dashes}"/><polygon points="{points}" fill="{color}"/></svg>'
    )


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    sorted_by: int | None = None,
    tall: bool = False,
) -> str:
    """A table to sort, which scrolls inside a box; the first cell of a row is its header.

    `sorted_by` is the column by which the rows descend already; nothing without rows.
    """
    if not rows:
        return ""
    texts = [cell.is_text for cell in rows[0]]
    head = "".join(
        f'<th scope="col"{_text(text)}{_descending(i == sorted_by)}>{escape(label)}</th>'
        for i, (label, text) in enumerate(zip(header, texts, strict=True))
    )
    body = "\n".join(f"<tr>{''.join(_cells(row))}</tr>" for row in rows)
    label = escape(caption, quote=True)
    box = "scroll tall" if tall else "scroll"
    box += " long" if len(rows) > _PRINTED_ROWS else ""
    return (
        f'<div class="{box}" tabindex="0" role="region" aria-label="{label}">'
        f'<table class="sortable">\n<caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _cells(row: Sequence[Cell]) -> Iterable[str]:
    for i, (html, key) in enumerate(row):
        value = escape(key, quote=True) if isinstance(key, str) else _sortable(key)
        if i == 0:
            yield f'<th scope="row" data-sort="{value}">{html}</th>'
        else:
            yield f'<td{_text(isinstance(key, str))} data-sort="{value}">{html}</td>'


def _text(is_text: bool) -> str:
    return ' class="text"' if is_text else ""


def _descending(is_sorted: bool) -> str:
    return ' aria-sort="descending"' if is_sorted else ""


def _sortable(number: float) -> str:
    """As JavaScript reads it; nothing for NaN."""
    text = f"{number:.8g}"
    return {"nan": "", "inf": "Infinity", "-inf": "-Infinity"}.get(text, text)


def definitions(entries: Mapping[str, Any]) -> str:
    """A list of names and values, those called "command" as code."""
    items = "".join(
        f"<dt>{escape(k)}</dt><dd>{_code(str(v)) if k == 'command' else escape(str(v))}</dd>"
        for k, v in entries.items()
    )
    return f'<dl class="list">{items}</dl>' if items else ""


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def figure(svg: bytes, title: str, alt: str, caption: str) -> str:
    """An image embedded in the page, with a text for those who do not see it."""
    data = base64.b64encode(svg).decode("ascii")
    label = escape(f"Figure: {title}", quote=True)
    return (
        f'<figure><div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(alt, quote=True)}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def links(names: Iterable[str]) -> str:
    """Links to files in the folder of the page."""
    items = (f'<a href="{escape(name, quote=True)}">{escape(name)}</a>' for name in names)
    return f"<p>{', '.join(items)}</p>"


def _slug(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
