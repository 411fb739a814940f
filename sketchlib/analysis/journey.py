"""The way a score took: figures of the retrospective.

Tables of `workbook.history` in, Axes out, in the manner of `plots`. Limits: the
family tree is drawn for some forty runs; beyond that read the table.
"""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sketchlib.analysis.plots import COOL, FAINT, GREY, INK, WARM, WIDTH, shorten

_ROW = 0.3  # inches


def plot_way(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Each run's score in the order they were started, and the best so far.

    Args:
        table: run, notebook, score, low, high (0-1), in order; rows without a score
            are left out.
        ax: where to draw.
    """
    scored = table[table["score"].notna()].reset_index(drop=True)
    if ax is None:
        ax = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")[1]
    places = np.arange(len(scored))
    is_blend = (scored["notebook"] == "05_ensemble").to_numpy()
    for group, colour, name in (
        (~is_blend, COOL, "training run"),
        (is_blend, WARM, "ensemble"),
    ):
        rows = scored[group]
        ax.vlines(places[group], rows["low"], rows["high"], color=colour, alpha=0.5)
        if len(rows):
            ax.plot(places[group], rows["score"], "o", color=colour, ms=6, label=name)
    best = scored["score"].cummax()
    ax.step(places, best, where="post", color=GREY, lw=1, label="best so far")
    names = [shorten(name, 18) for name in scored["run"]]
    ax.set_xticks(places, names, rotation=40 if len(names) > 6 else 0, ha="center")
    if len(names) > 6:
        plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    ax.set_ylabel("score, 0-1, 95 % bootstrap")
    ax.margins(x=0.06)
    ax.grid(axis="y")
    ax.legend(frameon=False, loc="lower right")
    ax.set_title("The score, run by run")
    return ax


def plot_cost(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Minutes by what came of them.

    Args:
        table: outcome, runs, minutes, as `history.count_cost`.
        ax: where to draw.
    """
    if ax is None:
        height = _ROW * len(table) + 1.1
        ax = plt.subplots(figsize=(WIDTH, height), layout="constrained")[1]
    colours = [WARM if name == "better" else COOL for name in table["outcome"]]
    rows = range(len(table))
    ax.barh(rows, table["minutes"], color=colours, height=0.6)
    for row, (minutes, runs) in enumerate(
        zip(table["minutes"], table["runs"], strict=True)
    ):
        told = f" {minutes:.1f} min, {runs} run" + "s" * (runs != 1)
        ax.text(minutes, row, told, va="center", fontsize=8, color=INK)
    ax.set_yticks(rows, table["outcome"])
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.set_xlabel("minutes of computing")
    ax.margins(x=0.2)
    ax.set_title("Where the time went")
    return ax


def plot_family(
    parents: pd.DataFrame, final: str, score: float, *, ax: Axes | None = None
) -> Axes:
    """What the final run was made from, right to left; weights on the lines.

    Args:
        parents: child, parent, role, weight, depth, model, score, as
            `history.trace_parents`.
        final: name of the final run.
        score: its score, 0-1; NaN without one.
        ax: where to draw.
    """
    first = parents.drop_duplicates("parent")
    columns = [[final], *(list(g["parent"]) for _, g in first.groupby("depth"))]
    tallest = max(len(column) for column in columns)
    if ax is None:
        height = max(1.6, 0.62 * tallest + 0.6)
        ax = plt.subplots(figsize=(WIDTH, height), layout="constrained")[1]
    spots = {
        name: (-depth, (len(column) - 1) / 2 - row)
        for depth, column in enumerate(columns)
        for row, name in enumerate(column)
    }
    for edge in parents.itertuples():
        _draw_line(ax, spots[edge.parent], spots[edge.child], edge.weight, edge.role)
    told = {row.parent: (row.model, row.score) for row in first.itertuples()}
    told[final] = ("", score)
    for name, spot in spots.items():
        _draw_node(ax, spot, name, *told[name])
    ax.set(xlim=(-len(columns) + 0.45, 0.55), ylim=(-tallest / 2 - 0.2, tallest / 2))
    ax.axis("off")
    ax.set_title("The family of the final run")
    return ax


def _draw_line(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    weight: float,
    role: str,
) -> None:
    heavy = 0.8 if np.isnan(weight) else 0.8 + 3 * weight
    line = {"arrowstyle": "-", "color": GREY, "linewidth": heavy}
    ax.annotate("", end, start, arrowprops=line, zorder=1)
    if np.isnan(weight) and role in ("runs", "audit_run", "member"):
        return
    text = role if np.isnan(weight) else f"{weight:.2f}"
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    ax.annotate(text, middle, fontsize=7, color=INK, ha="center", va="center",
                bbox={"fc": "white", "ec": "none", "pad": 1})  # fmt: skip


def _draw_node(
    ax: Axes, spot: tuple[float, float], name: str, model: str, score: float
) -> None:
    value = "" if np.isnan(score) else f"  {score:.3f}"
    lines = [shorten(name, 24) + value] + [shorten(model, 28)] * bool(model)
    box = {"boxstyle": "round,pad=0.45", "fc": "white", "ec": FAINT}
    ax.annotate(
        "\n".join(lines),
        spot,
        ha="center",
        va="center",
        fontsize=8,
        color=INK,
        bbox=box,
    )
