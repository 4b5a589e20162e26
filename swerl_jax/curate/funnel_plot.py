"""`funnel.png`: what was dropped and why, as bars. Loads matplotlib, so only the wiring of a task imports it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from matplotlib.figure import Figure

from swerl_jax.curate import funnel as funnel_lib
from swerl_jax.curate.funnel import Funnel

_BAR_INCHES = 0.3
_COLOURS = ("tab:orange", "tab:purple", "tab:brown", "tab:cyan", "tab:olive", "tab:pink")


def plot_funnel(funnel: Funnel, out_png: str | os.PathLike[str], order: Sequence[tuple[str, str]] = ()) -> None:
    """Draws one bar for each reason, from what was left before it down to what was left behind it.

    Args:
      funnel, order: as in `funnel.rows`.
      out_png: the picture, written or replaced; the same funnel gives the same bytes.
    """
    rows = funnel_lib.rows(funnel, order)
    labels = ["in", *(f"{stage}: {reason}" for stage, reason, _, _ in rows), "out"]
    starts = [0, *(left for *_, left in rows), 0]
    widths = [funnel.entered, *(dropped for _, _, dropped, _ in rows), funnel.kept]
    stages = list(dict.fromkeys(stage for stage, *_ in rows))
    colours = ["tab:gray", *(_COLOURS[stages.index(stage) % len(_COLOURS)] for stage, *_ in rows), "tab:green"]
    figure = Figure(figsize=(11, 1.5 + _BAR_INCHES * len(labels)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(labels)), widths, left=starts, color=colours)
    axes.bar_label(bars, labels=[f" {width:,}" for width in widths], fontsize="small")
    axes.set(yticks=range(len(labels)), yticklabels=labels, xlabel="changes", title="What became of the changes found")
    axes.set_xlim(0, 1.12 * max(1, funnel.entered))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(out_png, dpi=110, format="png", metadata={"Software": None})
