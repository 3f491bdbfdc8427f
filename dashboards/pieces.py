"""Pieces of the page as HTML: tiles, tables, strips and heat maps. style.css says how they look.

Whatever comes from outside, such as a payload, is escaped here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from html import escape
from typing import Final

_CODE: Final = re.compile(r"`([^`]+)`")
STATUS_CLASSES: Final = {
    "pass": "pass",
    "success": "pass",
    "repaired": "pass",
    "warn": "warn",
    "open": "warn",
    "fail": "fail",
    "error": "fail",
    "failed": "fail",
}
"""The class of a verdict; any other is quiet."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table; `kind` is a class of style.css, `title` shows on hovering."""

    text: str
    kind: str = ""
    title: str = ""

    def html(self, style: str = "") -> str:
        """Return it as a table cell."""
        attributes = "".join(
            f' {name}="{escape(value)}"'
            for name, value in (("class", self.kind), ("title", self.title), ("style", style))
            if value
        )
        return f"<td{attributes}>{escape(self.text)}</td>"


@dataclass(frozen=True)
class Check:
    """A check and its verdicts, the oldest first, each with what shows on hovering.

    A verdict is None for a run that did not hold the check.
    """

    name: str
    meaning: str
    verdicts: Sequence[tuple[str | None, str]]


def block(*parts: str) -> str:
    """Put parts together as one piece of the page."""
    return f'<div class="m">{"".join(parts)}</div>'


def title(text: str, note: str = "") -> str:
    """Return a section's title."""
    return f"<h2>{escape(text)}<small>{escape(note)}</small></h2>"


def tile(label: str, value: str, note: str = "", kind: str = "", *, large: bool = False) -> str:
    """Return a number with its name above and a note beside, which `kind` colours."""
    beside = f'<small class="{kind or "quiet"}">{escape(note)}</small>' if note else ""
    classes = "tile large" if large else "tile"
    return (
        f'<div class="{classes}"><span>{escape(label)}</span><b>{escape(value)}</b>{beside}</div>'
    )


def tiles(*of: str) -> str:
    """Put tiles into a row."""
    return f'<div class="tiles">{"".join(of)}</div>'


def table(columns: Sequence[Cell], rows: Iterable[Sequence[Cell]]) -> str:
    """Return a table."""
    head = "".join(f'<th class="{column.kind}">{escape(column.text)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(cell.html() for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def strips(checks: Iterable[Check]) -> str:
    """Return a strip for each check: a bar for each run."""
    return f'<div class="strips">{"".join(_strip(check) for check in checks)}</div>'


def _strip(check: Check) -> str:
    bars = "".join(
        f'<i class="{STATUS_CLASSES.get(status or "", "none")}" title="{escape(title)}"></i>'
        for status, title in check.verdicts
    )
    meaning = escape(check.meaning)
    return f'<div title="{meaning}"><span>{escape(check.name)}</span><div>{bars}</div></div>'


@dataclass(frozen=True)
class Heat:
    """A cell of a heat map: from -1, all of the colour `down`, over 0 to 1, all of `up`."""

    text: str
    heat: Decimal
    title: str


def heat_map(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Heat | None]]], cold: str = "up"
) -> str:
    """Return a heat map: a row has a name and a cell for each column, None where nothing is.

    `cold` is the colour of what is above zero, a variable of style.css.
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in ("", *columns))
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(_heat(cell, cold) for cell in cells)}</tr>"
        for name, cells in rows
    )
    return f'<div class="scroll"><table class="heat"><tr>{head}</tr>{body}</table></div>'


def _heat(cell: Heat | None, cold: str) -> str:
    if cell is None:
        return "<td></td>"
    colour = cold if cell.heat >= 0 else "down"
    strength = round(6 + 64 * min(abs(cell.heat), Decimal(1)))
    style = f"background: color-mix(in srgb, var(--{colour}) {strength}%, transparent)"
    return Cell(cell.text, title=cell.title).html(style)


def note(text: str, kind: str = "") -> str:
    """Return what is said where there is nothing to show; `commands` stand out."""
    said = _CODE.sub(r"<code>\1</code>", escape(text))
    return f'<div class="note {kind}">{said}</div>'
