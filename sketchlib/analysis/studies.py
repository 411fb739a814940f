"""Figures of a search: what it found, what mattered, how much of it is luck.

Tables of `tuning.read_trials` in, Axes out; the manner is that of `plots`. Fine-tuned
trials are red, probes blue, pruned ones hollow. Limits: parameters beyond the eight
that matter most are left out.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sketchlib.analysis import plots

COLOURS = {"train": plots.WARM, "probe": plots.COOL}
NAMES = {"train": "fine-tuned", "probe": "probe"}
_ENDED = ("complete", "pruned")
_MOST = 8  # parameters shown
_FACTS = {"number", "state", "kind", "score", "first", "epochs", "planned"}
_FACTS |= {"seconds", "run", "baseline", "trial"}


def list_parameters(trials: pd.DataFrame) -> list[str]:
    """The parameters that varied in a table of trials."""
    return [name for name in trials.columns if name not in _FACTS]


def plot_progress(
    trials: pd.DataFrame, objective: str, *, ax: Axes | None = None
) -> Axes:
    """Every trial's score and the best so far, in the order they were asked for."""
    ax = plots.make_axes(ax, 3.2)
    ended = trials[trials["state"].isin(_ENDED)]
    for kind, colour in COLOURS.items():
        own = ended[ended["kind"] == kind]
        _draw_trials(ax, own, "number", "score", colour)
    full = ended[ended["state"] == "complete"]
    if len(full):
        best = (
            full["score"].cummin()
            if objective == "log_loss"
            else full["score"].cummax()
        )
        ax.step(full["number"], best, where="post", color=plots.INK, linewidth=1.2)
        ax.annotate(
            f"best so far {best.iloc[-1]:.3f}",
            (full["number"].iloc[-1], best.iloc[-1]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
        )
    ax.set_xlabel("trial, in the order asked for")
    ax.set_ylabel(_unit(objective))
    ax.grid(axis="y")
    ax.set_title("Score of each trial", pad=24)
    _add_legend(ax, ended)
    return ax


def _unit(objective: str) -> str:
    return "accuracy, held out" if objective == "accuracy" else "log loss, nats"


def _draw_trials(ax: Axes, table: pd.DataFrame, x: str, y: str, colour: str) -> None:
    pruned = (table["state"] == "pruned").to_numpy()
    ax.scatter(table[x][~pruned], table[y][~pruned], s=30, color=colour, zorder=3)
    ax.scatter(
        table[x][pruned], table[y][pruned], s=26, zorder=2,
        facecolor="white", edgecolor=colour,
    )  # fmt: skip


def _add_legend(ax: Axes, table: pd.DataFrame) -> None:
    marks = [
        Line2D([], [], marker="o", linestyle="", color=COLOURS[kind], label=NAMES[kind])
        for kind in COLOURS
        if (table["kind"] == kind).any()
    ]
    if (table["state"] == "pruned").any():
        hollow = Line2D([], [], marker="o", linestyle="", color=plots.GREY)
        hollow.set(markerfacecolor="white", label="pruned")
        marks.append(hollow)
    ax.legend(
        handles=marks, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3,
        borderaxespad=0.1, handletextpad=0.1, columnspacing=1.2,
    )  # fmt: skip


def plot_curves(
    curves: pd.DataFrame, objective: str, *, ax: Axes | None = None
) -> Axes:
    """Learning curves of the fine-tuned trials; pruned ones end where they were.

    Args:
        curves: number, state, step (epochs), value.
        objective: of the search.
        ax: where to draw.
    """
    ax = plots.make_axes(ax, 3.2)
    for _, curve in curves.groupby("number"):
        full = curve["state"].iloc[0] == "complete"
        colour = plots.WARM if full else plots.GREY
        ax.plot(
            curve["step"], curve["value"], color=colour, zorder=3 if full else 2,
            linewidth=1.5 if full else 0.9, alpha=0.9 if full else 0.7,
        )  # fmt: skip
        ax.plot(
            curve["step"].iloc[-1], curve["value"].iloc[-1], "o", color=colour,
            ms=5 if full else 4, markerfacecolor=colour if full else "white",
        )  # fmt: skip
    ax.set_xticks(sorted(curves["step"].unique()))
    ax.set_xlabel("epoch")
    ax.set_ylabel(_unit(objective))
    ax.grid(axis="y")
    ax.set_title("Learning curves: red ran to the end, grey was pruned")
    return ax


def plot_importance(shares: pd.Series, basis: str, *, ax: Axes | None = None) -> Axes:
    """Share of the score's variance that each parameter explains, 0-1."""
    ax = plots.make_rows(ax, [str(name) for name in shares.index], 1.0)
    ax.barh(range(len(shares)), shares, color=plots.PALE, height=0.6)
    for row, share in enumerate(shares):
        ax.annotate(
            f"{share:.2f}", (share, row), xytext=(5, 0), va="center",
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    ax.set_xlim(0, max(1.0, shares.max()) * 1.08)
    ax.set_xlabel("share of the variance explained, 0-1")
    ax.set_title(f"Importance for the score {basis}")
    return ax


def plot_slices(trials: pd.DataFrame, names: Sequence[str], objective: str) -> Figure:
    """Score against each parameter, everything else differing too."""
    ended = trials[trials["state"].isin(_ENDED)]
    names = list(names)[:_MOST]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(plots.WIDTH, 2.5 * rows + 0.2), sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for ax, name in zip(axes.flat, names, strict=False):
        _draw_slice(ax, ended[ended[name].notna()], name)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel(_unit(objective))
    return figure


def _draw_slice(ax: Axes, table: pd.DataFrame, name: str) -> None:
    positions, ticks = _place(table[name])
    placed = table.assign(_x=positions)
    for kind, colour in COLOURS.items():
        _draw_trials(ax, placed[placed["kind"] == kind], "_x", "score", colour)
    if ticks is None:
        values = table[name].astype(float)
        if (values > 0).all() and values.max() / values.min() > 5:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.tick_params(axis="x", labelrotation=30)
    else:
        turned = max(map(len, ticks)) * len(ticks) > 18
        ax.set_xticks(
            range(len(ticks)), [plots.shorten(text, 16) for text in ticks],
            rotation=30 if turned else 0, ha="right" if turned else "center",
        )  # fmt: skip
        ax.set_xlim(-0.5, len(ticks) - 0.5)
    ax.grid(axis="y")
    ax.set_title(name, fontsize=9.5)


def _place(values: pd.Series) -> tuple[np.ndarray, list[str] | None]:
    """Positions on an axis, and the names of categories where there are any."""
    is_number = pd.api.types.is_numeric_dtype(values) and values.dtype != bool
    if is_number and values.nunique() > 4:
        return values.astype(float).to_numpy(), None
    ticks = sorted(values.unique())
    codes = values.map({tick: place for place, tick in enumerate(ticks)}).to_numpy(
        float
    )
    shift = np.random.default_rng(0).uniform(-0.14, 0.14, len(codes))  # no overlap
    return codes + shift, [f"{t:.3g}" if is_number else str(t) for t in ticks]


def plot_parallel(trials: pd.DataFrame, names: Sequence[str], objective: str) -> Axes:
    """Each fine-tuned trial as a line through its parameters; the best third is red.

    What only probes have, such as the strength of their head, is left out.
    """
    table = trials[trials["state"].isin(_ENDED) & (trials["kind"] == "train")]
    names = [name for name in names if table[name].notna().any()][: _MOST - 1]
    table = table.dropna(subset=[*names, "score"])
    table = table.sort_values("score", ascending=objective != "log_loss")
    ax = plots.make_axes(None, 3.6)
    heights, labels = _scale_columns(table, [*names, "score"])
    good = np.arange(len(table)) >= len(table) - max(1, len(table) // 3)
    for line, is_good in zip(heights, good, strict=True):
        ax.plot(
            range(len(line)), line, color=plots.WARM if is_good else plots.PALE,
            linewidth=1.5 if is_good else 0.9, alpha=0.85, zorder=3 if is_good else 2,
        )  # fmt: skip
    for place, marks in enumerate(labels):
        ax.axvline(place, color=plots.GREY, linewidth=0.8, zorder=1)
        for height, text in marks:
            ax.annotate(
                plots.shorten(text, 16), (place, height), xytext=(4, 0), fontsize=7.5,
                textcoords="offset points", va="center", zorder=5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
    ax.set_xticks(range(len(labels)), [*names, objective.replace("_", " ")])
    ax.set_yticks([])
    ax.set_xlim(-0.1, len(labels) - 0.45)
    ax.set_ylim(-0.08, 1.08)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_title("Parameters of each fine-tuned trial; red: the best third")
    return ax


def _scale_columns(
    table: pd.DataFrame, names: Sequence[str]
) -> tuple[np.ndarray, list[list[tuple[float, str]]]]:
    """Heights 0-1 of every trial and column, and the labels on each column."""
    heights, labels = [], []
    for name in names:
        places, ticks = _place(table[name])
        if ticks is not None:
            most = max(len(ticks) - 1, 1)
            heights.append(places / most if len(ticks) > 1 else places * 0 + 0.5)
            at = [
                place / most if len(ticks) > 1 else 0.5 for place in range(len(ticks))
            ]
            labels.append(list(zip(at, ticks, strict=True)))
            continue
        wide = (places > 0).all() and places.max() / places.min() > 5
        scale = np.log(places) if wide else places
        span = np.ptp(scale) or 1.0
        heights.append((scale - scale.min()) / span)
        labels.append([(0.0, f"{places.min():.3g}"), (1.0, f"{places.max():.3g}")])
    return np.clip(np.column_stack(heights), -0.05, 1.05), labels


def plot_curse(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Scores on the folds that chose, and on folds the search never saw.

    Args:
        table: name, search, fresh (accuracy, 0-1), chosen (bool).
        ax: where to draw.
    """
    ax = plots.make_axes(ax, 3.2)
    ends: list[float] = []
    for row in table.itertuples():
        colour = plots.WARM if row.chosen else plots.GREY
        ax.plot(
            [0, 1], [row.search, row.fresh], "o-", color=colour, linewidth=1.6, ms=5
        )
        ends.append(float(row.fresh))
    for place, text in zip(_spread(ends), table["name"], strict=True):
        ax.annotate(
            text, (1.05, place), va="center", fontsize=8.5, annotation_clip=False
        )
    ax.set_xticks([0, 1], ["folds that chose", "fresh folds"])
    ax.set_xlim(-0.15, 1.75)
    ax.set_ylabel("accuracy, held out")
    ax.grid(axis="y")
    ax.set_title("Search score against fresh score")
    return ax


def _spread(values: Sequence[float]) -> np.ndarray:
    """The same heights, moved apart where labels would overlap."""
    order = np.argsort(values)
    placed = np.array(values, float)
    span = max(np.ptp(placed), 0.02)
    for before, after in zip(order, order[1:], strict=False):
        placed[after] = max(placed[after], placed[before] + 0.07 * span)
    return placed


def plot_transfer(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """The same recipes on the small model and on the large one.

    Args:
        table: name, small, large (accuracy, 0-1), chosen (bool).
        ax: where to draw.
    """
    ax = plots.make_axes(ax, 3.4)
    both = table[["small", "large"]].to_numpy()
    low, high = both.min(), both.max()
    margin = max(0.1 * (high - low), 0.01)
    ends = (low - margin, high + 2 * margin)
    ax.plot(ends, ends, color=plots.GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    for row in table.itertuples():
        colour = plots.WARM if row.chosen else plots.GREY
        ax.plot(row.small, row.large, "o", color=colour, ms=6)
        ax.annotate(
            row.name, (row.small, row.large), xytext=(6, 3), fontsize=8.5,
            textcoords="offset points",
        )  # fmt: skip
    ax.set(xlim=ends, ylim=ends, xlabel="accuracy, small model")
    ax.set_ylabel("accuracy, large model")
    ax.set_title("The same recipes on both models")
    return ax
