"""A report as a list of blocks, written as Markdown and as one HTML page that opens from disk, without a network."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    text: str
    level: int
    anchor: str = ""


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Bullets:
    lines: Sequence[str]


@dataclass(frozen=True)
class Link:
    """A cell that leads to a heading of the page; plain text in Markdown."""

    text: str
    anchor: str


@dataclass(frozen=True)
class Table:
    rows: Sequence[Sequence[str | Link]]
    """The first is the head."""
    words: int = 1
    """So many columns at the left are words, the others numbers."""


@dataclass(frozen=True)
class Picture:
    path: Path
    """A PNG or WebP below the folder of the report."""
    caption: str


@dataclass(frozen=True)
class Commands:
    summary: str
    lines: Sequence[str]


Block = Heading | Paragraph | Bullets | Table | Picture | Commands


def to_markdown(blocks: Sequence[Block], folder: Path) -> str:
    """`folder` is where the text will be: pictures are named from there."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text):
            return _plain(text)
        case Bullets(lines):
            return "\n".join(f"- {_plain(line)}" for line in lines)
        case Table(rows, words):
            head, *body = [[_plain(_text(cell)).replace("|", "\\|") for cell in row] for row in rows]
            ruled = [head, ["---"] * words + ["---:"] * (len(head) - words), *body]
            return "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)
        case Picture(path, caption):
            where = path.relative_to(folder).as_posix().replace(" ", "%20")
            return f"![{_plain(caption)}]({where})\n\n*{_plain(caption)}*"
        case Commands(summary, lines):
            return f"{_plain(summary)}\n\n```bash\n" + "\n".join(lines) + "\n```"


def _text(cell: str | Link) -> str:
    return cell.text if isinstance(cell, Link) else cell


def _plain(text: str) -> str:
    """Without what Markdown would read as a mark."""
    return "".join(f"\\{c}" if c in "*_`[]<>" else c for c in " ".join(text.split()))


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #8886; padding-top: 1rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.75rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
.word { text-align: left; white-space: normal; min-width: 9rem; }
figure { margin: 1.5rem 0; } figcaption { font-size: 0.9rem; opacity: 0.8; }
img { max-width: 100%; height: auto; background: white; }
pre { overflow-x: auto; padding: 0.75rem; background: #8882; font-size: 0.85rem; }
summary { cursor: pointer; }
"""


def to_html(blocks: Sequence[Block], title: str) -> str:
    """Pictures stand in the page itself."""
    body = "\n".join(map(_html, blocks))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level, anchor):
            name = f' id="{html.escape(anchor)}"' if anchor else ""
            return f"<h{level}{name}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Bullets(lines):
            return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"
        case Table(rows, words):
            head, *body = rows
            whole = "".join([_row("th", head, words), *(_row("td", row, words) for row in body)])
            return f'<div class="wide"><table>{whole}</table></div>'
        case Picture(path, caption):
            data = base64.b64encode(path.read_bytes()).decode()
            said = html.escape(caption)
            image = f'<img alt="{said}" src="data:image/{path.suffix[1:]};base64,{data}">'
            return f"<figure>{image}<figcaption>{said}</figcaption></figure>"
        case Commands(summary, lines):
            code = html.escape("\n".join(lines))
            return f"<details><summary>{html.escape(summary)}</summary><pre>{code}</pre></details>"


def _row(kind: str, cells: Sequence[str | Link], words: int) -> str:
    classes = [' class="word"'] * words + [""] * (len(cells) - words)
    each = (f"<{kind}{of}>{_cell(cell)}</{kind}>" for cell, of in zip(cells, classes, strict=True))
    return f"<tr>{''.join(each)}</tr>"


def _cell(cell: str | Link) -> str:
    text = html.escape(_text(cell))
    return f'<a href="#{html.escape(cell.anchor)}">{text}</a>' if isinstance(cell, Link) else text
