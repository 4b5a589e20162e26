"""`rewards.png`: the curves of a run. Loads matplotlib, so only the wiring of a task that reports imports it."""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from swerl_jax.learn import metrics

_MARKED_POINTS = 40  # a series of at most so many points shows each
_SMOOTHED = 20  # points of a running mean
_COLUMNS = 3


class Panel(NamedTuple):
    """One panel of the picture: label → metric, times `scale`."""

    title: str
    y_label: str
    series: Mapping[str, str]
    scale: float = 1.0


PANELS = (
    Panel(
        "Training reward",
        "reward (−1 … 1)",
        {"mean": "reward/mean", "well-formed answers": "reward/well_formed_mean"},
    ),
    Panel(
        "Training answers",
        "% of answers",
        {"correct format": "format/correct_frac", "exact fix": "exact_frac"},
        scale=100,
    ),
    Panel("Supervised warm start", "nats per token", {"training": "sft/loss"}),
    Panel(
        "Held-out reward",
        "reward (−1 … 1)",
        {"mean": "eval/reward", "well-formed answers": "eval/well_formed_reward"},
    ),
    Panel(
        "Held-out answers",
        "% of answers",
        {"correct format": "eval/format_frac", "exact fix": "eval/exact_frac"},
        scale=100,
    ),
    Panel("Answer length", "tokens", {"mean": "length/mean", "95th percentile": "length/p95"}),
    Panel("Entropy of the policy", "nats per token", {"sampled or taught tokens": "entropy"}),
)


def plot_rewards(
    metrics_path: str | os.PathLike[str] | Sequence[pathlib.Path], out_png: str | os.PathLike[str]
) -> None:
    """Draws the curves of a run, one panel per entry of PANELS that was recorded.

    A series of many points is shown faintly, with its running mean on top.

    Args:
      metrics_path: a `metrics.jsonl`, or those of a run's stages in order.
      out_png: the picture, written or replaced.

    Raises:
      OSError, ValueError: as `metrics.read_metrics`.
    """
    paths = [metrics_path] if isinstance(metrics_path, str | os.PathLike) else metrics_path
    rows = [row for path in paths for row in metrics.read_metrics(path)]
    panels = [panel for panel in PANELS if any(name in row for row in rows for name in panel.series.values())]
    lines = max(1, -(-len(panels) // _COLUMNS))
    figure = Figure(figsize=(15, 4 * lines), layout="constrained")
    figure.suptitle("Learning to fix bugs" if panels else "Nothing is recorded in this run")
    for axes, panel in itertools.zip_longest(figure.subplots(lines, _COLUMNS, squeeze=False).flat, panels):
        _draw(axes, panel, rows) if panel else axes.set_axis_off()
    figure.savefig(out_png, dpi=110, format="png")


def _draw(axes: Axes, panel: Panel, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set(title=panel.title, xlabel="step", ylabel=panel.y_label)
    axes.grid(alpha=0.3)
    for label, name in panel.series.items():
        steps, values = _series(rows, name)
        if len(steps) > _MARKED_POINTS:
            line, = axes.plot(steps, panel.scale * values, alpha=0.25, linewidth=1)
            axes.plot(steps, panel.scale * _running_mean(values), color=line.get_color(), label=label)
        elif steps:
            axes.plot(steps, panel.scale * values, marker="o", markersize=4, label=label)
    axes.legend(loc="best", fontsize="small")


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each value and up to _SMOOTHED - 1 before it; values that are not finite are left out."""
    windows = [values[max(0, i + 1 - _SMOOTHED):i + 1] for i in range(len(values))]
    return np.array([np.mean(one[np.isfinite(one)]) if np.isfinite(one).any() else np.nan for one in windows])


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], np.ndarray]:
    points = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in points], np.array([value for _, value in points], np.float64)
