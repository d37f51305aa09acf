"""The parts a self-contained HTML page is made of: no scripts, no network, prints and scrolls."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

GENERATOR = '<meta name="generator" content="pyro_elbo_lab">'

_STYLE = """
:root { --ink: #1c1e21; --soft: #5c6370; --line: #d9dce1; --paper: #fff; --wash: #f5f6f8; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 68rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .6rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; max-width: 46rem; }
a { color: #0b5ea8; }
.soft { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--ink); font-weight: 600; }
tbody th { font-weight: 500; white-space: normal; min-width: 8.5rem; }
th:first-child, td.text, th.text { text-align: left; }
tbody tr:nth-child(even) { background: var(--wash); }
td small { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem;
  margin: .5rem 0; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; max-width: 52rem; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem; }
.verdict { border-left: .35rem solid var(--tone); background: var(--wash); margin: .6rem 0;
  padding: .55rem .9rem; break-inside: avoid; }
.verdict h3, .verdict p { margin: 0; max-width: none; }
.verdict strong { color: var(--tone); }
.good { --tone: #00694d; } .fair { --tone: #7a5900; } .bad { --tone: #a93c00; }
.unknown { --tone: #4d5563; }
@media (max-width: 36rem) {
  body { padding: 1rem .8rem 2rem; font-size: 15px; }
  h1 { font-size: 1.35rem; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: .5rem; }
  th, td { padding: .25rem .5rem; }
  figure img { width: 36rem; max-width: none; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; }
  h2, h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
}
"""


def page(title: str, sections: Iterable[str]) -> str:
    """Return a whole document with everything it needs inside."""
    body = "\n".join(sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{GENERATOR}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """Return a section under its own second-level heading; nothing if all parts are empty."""
    content = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>" if content else ""


def paragraph(text: str, soft: bool = False) -> str:
    """Return a paragraph of plain text."""
    return f'<p class="soft">{escape(text)}</p>' if soft else f"<p>{escape(text)}</p>"


def verdict(name: str, kind: str, tone: str, sentence: str) -> str:
    """Return a box with a verdict; ``tone`` is good, fair, bad or unknown.

    Where the sentence begins with the kind of verdict, that stands out.
    """
    start = len(kind) if sentence.lower().startswith(kind.lower()) else 0
    text = f"<strong>{escape(sentence[:start])}</strong>{escape(sentence[start:])}"
    return f'<div class="verdict {tone}"><h3>{escape(name)}</h3><p>{text}</p></div>'


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose cells are HTML; the first cell of each row is its header."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    label = escape(caption, quote=True)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def definitions(entries: Mapping[str, Any]) -> str:
    """Return a list of names and values."""
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in entries.items())
    return f"<dl>{items}</dl>" if items else ""


def figure(svg: bytes, alt: str, caption: str) -> str:
    """Return an image embedded in the page, with a text for those who do not see it."""
    data = base64.b64encode(svg).decode("ascii")
    return (
        f'<figure><div class="scroll" tabindex="0" role="region" aria-label="Figure">'
        f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(alt, quote=True)}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def links(names: Iterable[str]) -> str:
    """Return links to files in the folder of the page."""
    items = (f'<a href="{escape(name, quote=True)}">{escape(name)}</a>' for name in names)
    return f"<p>{', '.join(items)}</p>"
