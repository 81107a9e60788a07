"""Draws what `make bench-peers` measured: `python chart.py results/side-by-side.json OUT.svg`."""

from __future__ import annotations

import html
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

COLOURS = ("#1b6ca8", "#7fb2d9", "#c8553d", "#e8a87c", "#5b8c5a", "#a9c5a0", "#8d6a9f", "#999999")
BAR, GAP, LEFT, TOP, HEIGHT = 20, 26, 64, 64, 260

Bars = Sequence[tuple[str, Sequence[float | None]]]
"""Names, and a value for each group."""


def draw(title: str, groups: Sequence[str], bars: Bars) -> str:
    """Groups of bars on a logarithmic scale, as an SVG; None is a bar that is not there."""
    values = [value for _, row in bars for value in row if value]
    low = math.floor(math.log10(min(values)))
    high = math.ceil(math.log10(max(values)))
    width_of_group = len(bars) * BAR + GAP
    width = LEFT + len(groups) * width_of_group + 20
    legend_rows = (len(bars) + 1) // 2
    bottom = TOP + HEIGHT
    total = bottom + 48 + 20 * legend_rows

    def y(value: float) -> float:
        return bottom - HEIGHT * (math.log10(value) - low) / max(high - low, 1)

    def parts() -> Iterator[str]:
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}" '
            f'font-family="sans-serif" font-size="12" role="img"><title>{html.escape(title)}</title>'
        )
        yield f'<rect width="{width}" height="{total}" fill="#ffffff"/>'
        yield _text(LEFT, 24, title, size=15)
        for power in range(low, high + 1):
            yield f'<path d="M{LEFT} {y(10**power):.1f}H{width - 20}" stroke="#dddddd"/>'
            yield _text(LEFT - 8, y(10**power) + 4, f"{10**power:,}", anchor="end")
        for column, group in enumerate(groups):
            x = LEFT + GAP / 2 + column * width_of_group
            yield _text(x + len(bars) * BAR / 2, bottom + 18, group, anchor="middle")
            for place, (_, row) in enumerate(bars):
                if value := row[column]:
                    yield (
                        f'<rect x="{x + place * BAR:.1f}" y="{y(value):.1f}" width="{BAR - 2}" '
                        f'height="{bottom - y(value):.1f}" fill="{COLOURS[place % len(COLOURS)]}"/>'
                    )
                    yield _text(x + place * BAR + BAR / 2 - 1, y(value) - 4, _short(value), anchor="middle", size=9)
        for place, (name, _) in enumerate(bars):
            x, at = LEFT + (place % 2) * (width - LEFT) / 2, bottom + 44 + 20 * (place // 2)
            yield f'<rect x="{x:.1f}" y="{at - 10}" width="12" height="12" fill="{COLOURS[place % len(COLOURS)]}"/>'
            yield _text(x + 18, at, name)
        yield "</svg>"

    return "\n".join(parts()) + "\n"


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{html.escape(text)}</text>'


def _short(value: float) -> str:
    return f"{value / 1000:.0f}k" if value >= 10_000 else f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


def side_by_side(cells: Sequence[dict[str, Any]]) -> str:
    """Proposals per second of the smallest values, by what is in flight."""
    size = min(cell["load"]["value_bytes"] for cell in cells)
    shown = [cell for cell in cells if (cell["load"]["value_bytes"], cell["load"]["what"]) == (size, "propose")]
    in_flight = sorted({cell["load"]["in_flight"] for cell in shown})
    rates = {(cell["who"], cell["load"]["in_flight"]): cell["found"].get("rate") for cell in shown}
    # The disk itself is measured with one writer only.
    names = [
        who for who in dict.fromkeys(who for who, _ in rates) if all((who, number) in rates for number in in_flight)
    ]
    bars = [(who, [rates[who, number] for number in in_flight]) for who in names]
    return draw(
        f"Proposals of {size} bytes a second, on a logarithmic scale",
        [f"{number} in flight" for number in in_flight],
        bars,
    )


if __name__ == "__main__":
    found = json.loads(pathlib.Path(sys.argv[1]).read_text())
    pathlib.Path(sys.argv[2]).write_text(side_by_side(found["medians"]))
