"""Rows of `holdfast bench --sessions` as two small SVG charts.

    python -m holdfast.agent.bench.charts ROWS.jsonl OUT.svg

Left, seconds to the first token over the length of the context: resuming, and reading everything again. Right, bytes
written over a session's life beside the bytes that are kept.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 860, 330, 70, 50, 320, 220
BLUE, ORANGE, GREY = "#1f6feb", "#d9730d", "#8b949e"
Row = dict[str, Any]
Series = list[tuple[float, float]]


def charts(rows: Sequence[Row]) -> str:
    """The SVG; contexts that were measured several times count with their last row."""
    resumes = {row["context"]: row for row in rows if row["row"] == "resume"}
    saves = {row["context"]: row for row in rows if row["row"] == "save"}
    again = [(c, row["read_again_s"]) for c, row in sorted(resumes.items())]
    resumed = [(c, row["seconds"]) for c, row in sorted(resumes.items())]
    written = [(c, row["bytes_written"] / 1e6) for c, row in sorted(saves.items())]
    kept = [(c, row["bytes_kept"] / 1e6) for c, row in sorted(saves.items())]
    parts = _chart(0, "seconds to the first token", {"read again": (again, ORANGE), "resume": (resumed, BLUE)})
    parts += _chart(430, "MB on disk", {"written, all saves": (written, ORANGE), "kept": (kept, BLUE)})
    style = "text{font:12px sans-serif;fill:#57606a}.title{font-weight:bold;fill:#24292f}"
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>', background, *parts, "</svg>", ""]
    )


def _chart(shift: int, title: str, series: dict[str, tuple[Series, str]]) -> list[str]:
    """Both axes logarithmic."""
    points = [point for values, _ in series.values() for point in values]
    x, x_ticks = _axis([p[0] for p in points], shift + LEFT, PLOT_WIDTH)
    y, y_ticks = _axis([p[1] for p in points], TOP + PLOT_HEIGHT, -PLOT_HEIGHT)
    parts = [f'<text class="title" x="{shift + LEFT}" y="{TOP - 26}">{title}</text>']
    for tick in x_ticks:
        parts.append(_line([(x(tick), TOP), (x(tick), TOP + PLOT_HEIGHT)], GREY, 0.3))
        parts.append(f'<text x="{x(tick):.0f}" y="{TOP + PLOT_HEIGHT + 18}" text-anchor="middle">{_short(tick)}</text>')
    for tick in y_ticks:
        parts.append(_line([(shift + LEFT, y(tick)), (shift + LEFT + PLOT_WIDTH, y(tick))], GREY, 0.3))
        parts.append(f'<text x="{shift + LEFT - 8}" y="{y(tick) + 4:.0f}" text-anchor="end">{_short(tick)}</text>')
    middle = shift + LEFT + PLOT_WIDTH / 2
    parts.append(f'<text x="{middle}" y="{TOP + PLOT_HEIGHT + 38}" text-anchor="middle">tokens of context</text>')
    for number, (name, (values, colour)) in enumerate(series.items()):
        placed = [(x(a), y(b)) for a, b in values]
        parts.append(_line(placed, colour, 2))
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in placed]
        at = shift + LEFT + number * 140
        parts.append(f'<rect x="{at}" y="{TOP - 16}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{at + 15}" y="{TOP - 7}">{name}</text>')
    return parts


def _axis(values: list[float], start: float, length: float) -> tuple[Callable[[float], float], list[float]]:
    """A logarithmic scale over whole powers of ten, and its ticks."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    ticks = [float(10**power) for power in range(low, high + 1)]
    return lambda value: start + length * (math.log10(value) - low) / (high - low), ticks


def _line(points: Series, colour: str, width: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _short(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    target.write_text(charts([json.loads(line) for line in source.read_text().splitlines()]))


if __name__ == "__main__":
    main()
