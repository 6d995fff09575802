"""Training curves: the log of a training run, and its drawing as SVG."""

import dataclasses
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gr_jax.errors import UserError

CURVES = {
    "loss": "loss",
    "learning_rate": "learning rate",
    "examples_per_second": "examples per second",
}
"""Key in the training log -> the axis label, in the order they are drawn."""

_WIDTH, _HEIGHT = 340, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 30, 40
_POINTS = 240  # more are averaged: a page is no place for a million of them


@dataclasses.dataclass(frozen=True)
class Curve:
    """One quantity over the training steps, in the order of the steps."""

    label: str
    steps: np.ndarray
    values: np.ndarray


def read_curves(path: Path) -> list[Curve]:
    """Reads the curves of a training log, one JSON object a line.

    Where a step comes twice (a run that was cut off and went on from an earlier checkpoint), its
    last line counts. A last line without its end is left out: the writer may have been killed.

    Args:
        path: The log; it need not exist.

    Returns:
        The curves of `CURVES` that the log has, without values that are not finite.

    Raises:
        UserError: Naming the file and line, where a line is not an object with a "step".
    """
    if not path.is_file():
        return []
    records: dict[int, dict] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        if line.strip():
            record = _parse(f"{path}:{number}", line)
            records[record["step"]] = record
    curves = []
    for key, label in CURVES.items():
        points = sorted(
            (step, float(record[key]))
            for step, record in records.items()
            if isinstance(record.get(key), int | float) and math.isfinite(record[key])
        )
        if points:
            steps, values = np.asarray(points, dtype=np.float64).T
            curves.append(Curve(label, steps, values))
    return curves


def draw_curve(curve: Curve) -> str:
    """Draws one curve as an SVG element with labelled axes.

    Colours are the page's CSS variables, so that the drawing follows its light or dark look. A
    long curve is drawn as the mean of neighbouring points over the band from their least to their
    greatest.
    """
    label = html.escape(curve.label)
    x_ticks = _ticks(float(curve.steps[0]), float(curve.steps[-1]))
    y_ticks = _ticks(min(0.0, float(curve.values.min())), max(0.0, float(curve.values.max())))
    x_low, x_high = float(curve.steps[0]), max(float(curve.steps[-1]), float(curve.steps[0]) + 1)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x(step: float) -> float:
        return _LEFT + (step - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (y_high - value) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 7}" y="{y(t) + 4:.1f}" text-anchor="end">'
        f"{_short(t)}</text>"
        for t in y_ticks
    ) + "".join(
        f'<text class="tick" x="{x(t):.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">'
        f"{_short(t)}</text>"
        for t in x_ticks
        if x_low <= t <= x_high
    )
    steps, low, mean, high = _thin(curve)
    line = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, mean, strict=True))
    band = ""
    if len(steps) < len(curve.steps):
        edge = [*zip(steps, low, strict=True), *zip(steps[::-1], high[::-1], strict=True)]
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in edge)
        band = f'<polygon class="band" points="{points}"/>'
    dot = f'<circle class="dot" cx="{x(steps[-1]):.1f}" cy="{y(mean[-1]):.1f}" r="3"/>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label} over steps">'
        f'<text class="axis" x="4" y="14">{label}</text>{grid}{band}'
        f'<polyline class="curve" points="{line}"/>{dot}'
        f'<text class="axis" x="{middle:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">step</text>'
        "</svg>"
    )


def _parse(where: str, line: str) -> dict:
    """One line of the log."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}); remove the line") from error
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise UserError(f'{where}: not an object with a whole number as "step"; remove the line')
    return record


def _thin(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """At most `_POINTS` points: their steps, and the least, mean and greatest value of each."""
    groups = min(_POINTS, len(curve.steps))
    starts = np.arange(groups) * len(curve.steps) // groups
    counts = np.diff(np.append(starts, len(curve.steps)))
    return (
        np.add.reduceat(curve.steps, starts) / counts,
        np.minimum.reduceat(curve.values, starts),
        np.add.reduceat(curve.values, starts) / counts,
        np.maximum.reduceat(curve.values, starts),
    )


def _ticks(low: float, high: float, most: int = 5) -> Sequence[float]:
    """Round numbers, evenly spaced, whose range covers [low, high]."""
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / most))
    step = next((unit * m for m in (1, 2, 2.5, 5) if span / (unit * m) <= most), unit * 10)
    first, last = math.floor(low / step), math.ceil((low + span) / step)
    return [i * step for i in range(first, last + 1)]


def _short(value: float) -> str:
    """A tick's number in a few characters: 0.002, 250, 40k, 1.5M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2g}"
