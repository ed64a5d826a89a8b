#!/usr/bin/env python3
"""Draws lines of measurements as an SVG file, without any library.

plot.py rows.json "title" out.svg X Y...: rows.json is an array of objects; X and the Ys are names of
numbers in them. Both axes are logarithmic; what is missing or not positive is left out.
"""
import json
import math
import sys
from html import escape

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 40, 50
COLOURS = ["#0b6e99", "#c4431d", "#4d7a1f", "#7b3f98", "#8a6d00", "#444444"]


def decades(values):
    """Powers of ten around all values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def label(value):
    """A power of ten as people write it."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def plot(rows, x, ys, title):
    """The SVG's text."""
    lines = {y: [(r[x], r[y]) for r in rows if (r.get(x) or 0) > 0 and (r.get(y) or 0) > 0] for y in ys}
    points = [p for line in lines.values() for p in line]
    if not points:
        raise SystemExit(f"nothing to draw: no row has {x} and one of {', '.join(ys)}")
    (x0, x1), (y0, y1) = (decades([p[i] for p in points]) for i in (0, 1))

    def place(px, py):
        across = (math.log10(px) - x0) / (x1 - x0)
        up = (math.log10(py) - y0) / (y1 - y0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
    ]
    for power in range(x0, x1 + 1):
        at, bottom = place(10.0**power, 10.0**y0)
        top = place(10.0**power, 10.0**y1)[1]
        out.append(f'<line x1="{at:.1f}" y1="{bottom:.1f}" x2="{at:.1f}" y2="{top:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{at:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{label(10.0**power)}</text>')
    for power in range(y0, y1 + 1):
        left, at = place(10.0**x0, 10.0**power)
        right = place(10.0**x1, 10.0**power)[0]
        out.append(f'<line x1="{left:.1f}" y1="{at:.1f}" x2="{right:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 6:.1f}" y="{at + 4:.1f}" text-anchor="end">{label(10.0**power)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x)}</text>')
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(*p) for p in sorted(line)))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.extend(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in (place(*p) for p in line)
        )
        out.append(f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 20 + 18 * number}" fill="{colour}">{escape(name)}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"


def main():
    """The command line."""
    if len(sys.argv) < 6:
        raise SystemExit(__doc__)
    source, title, target, x, *ys = sys.argv[1:]
    with open(source, encoding="utf-8") as file:
        rows = json.load(file)
    with open(target, "w", encoding="utf-8") as file:
        file.write(plot(rows, x, ys, title))


if __name__ == "__main__":
    main()
