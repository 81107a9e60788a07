"""Tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["columns", "of_bytes", "sections"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def columns(rows: Iterable[Sequence[object]]) -> list[str]:
    """Set rows of one length into columns; numbers stand to the right."""
    rows = [[cell if isinstance(cell, int) else _printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        cells = [
            str(cell).rjust(width) if isinstance(cell, int) else str(cell).ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def sections(parts: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Set lines behind their titles; a title without lines is left out."""
    parts = [(title, lines) for title, lines in parts if lines]
    width = max(len(title) for title, _ in parts)
    text = ""
    for title, lines in parts:
        for number, line in enumerate(lines):
            text += f"{title if number == 0 else '':{width}}  {_printable(line)}\n"
    return text


def _printable(text: str) -> str:
    """Escape what would command a terminal: some of it comes from outside."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def of_bytes(count: int) -> str:
    """Say a number of bytes shortly."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"
