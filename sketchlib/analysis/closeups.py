"""Figures of what a run gets wrong, where it looks, and what its blend is made of.

The theme, the colours and the rows are those of `plots`. Limits: above forty classes
only the worst are named.
"""

import textwrap

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.ticker import MaxNLocator

from sketchlib.analysis import breakdown, gradcam, plots

# --- looking closer ---------------------------------------------------------


def plot_class_recall(
    table: pd.DataFrame, *, worst: int = 20, ax: Axes | None = None
) -> Axes:
    """Recall and precision of each class, worst first.

    Up to 40 classes each has a row. With more, one curve shows all by rank and the
    `worst` are named beside it; when `ax` is given, the curve alone is drawn.

    Args:
        table: `breakdown.per_class`.
        worst: classes named, when there are too many to name all.
        ax: where to draw.
    """
    table = table[table["images"] > 0]
    if len(table) <= plots.FULL_NAMES:
        ax = _plot_recall_rows(table, ax, f"Recall by class, {len(table)} classes")
        plots.mark_line(
            ax, table["recall"].mean(), f"mean {table['recall'].mean():.3f}"
        )
        ax.set_title(ax.get_title(loc="left"), pad=18)
        return ax
    side = None
    if ax is None:
        height = 0.235 * worst + 1.0
        _, (ax, side) = plt.subplots(
            1,
            2,
            figsize=(plots.WIDTH, height),
            layout="constrained",
            width_ratios=(5, 4),
        )
    recall = table["recall"].to_numpy()
    ranks = np.arange(1, len(recall) + 1)
    ax.fill_between(ranks, recall, step="mid", color=plots.PALE, linewidth=0)
    ax.plot(ranks, recall, color=plots.COOL, linewidth=1, drawstyle="steps-mid")
    ax.axhline(recall.mean(), color=plots.GREY, linewidth=1, linestyle=(0, (4, 3)))
    ax.annotate(f" mean {recall.mean():.3f}", (1, recall.mean()), va="bottom")
    ax.set(xlim=(1, len(recall)), ylim=(0, 1.02), ylabel="recall, 0-1")
    ax.set_xlabel(
        f"classes from worst to best · {(recall == 0).sum()} at 0 · "
        f"{(recall < 0.5).sum()} under 0.5 · {(recall == 1).sum()} at 1"
    )
    ax.set_title(f"Recall of all {len(recall)} classes")
    if side is not None:
        _plot_recall_rows(table.head(worst), side, f"The worst {worst}")
    return ax


def _plot_recall_rows(table: pd.DataFrame, ax: Axes | None, title: str) -> Axes:
    names = table["class_name"].tolist()
    if ax is None:
        ax = plots.make_rows(None, names, 1.0)
    else:
        plots.make_rows(ax, names)
    rows = np.arange(len(table))
    ax.hlines(rows, 0, table["recall"], color=plots.FAINT, linewidth=2, zorder=1)
    ax.plot(table["precision"], rows, "|", color=plots.GREY, ms=8, mew=1.5)
    ax.plot(table["recall"], rows, "o", color=plots.WARM, ms=5)
    for row, (thief, share) in enumerate(
        table[["most_confused_with", "share"]].itertuples(index=False)
    ):
        if thief:
            text = f"→ {plots.shorten(thief, 20)} {share:.0%}"
            ax.text(1.03, row, text, va="center", fontsize=7.5, color=plots.GREY)
    ax.set(xlim=(-0.02, 1.0), xlabel="● recall   | precision   → most confused with")
    ax.set_xticks([0, 0.5, 1])
    ax.set_title(title)
    return ax


def plot_confusion(
    counts: pd.DataFrame, *, pairs: int = 25, ax: Axes | None = None
) -> Axes:
    """Who is taken for whom: a matrix up to 30 classes, else the worst pairs.

    Args:
        counts: `breakdown.confusion`, pictures by true row and predicted column.
        pairs: pairs shown when there are more than 30 classes.
        ax: where to draw.
    """
    if len(counts) > 30:
        return _plot_worst_pairs(breakdown.rank_pairs(counts, pairs), ax)
    values = counts.to_numpy(float)
    shares = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    side = 0.27 * len(counts) + 2.2
    ax = _plot_matrix(
        shares, list(counts.index), plots.DEPTH, plots.make_axes(ax, side, side + 0.4)
    )
    if len(counts) <= 20:
        _write_cells(ax, counts.to_numpy(), shares)
    ax.set(xlabel="predicted", ylabel="true")
    ax.set_title("Confusion, share of each true class (0-1)")
    return ax


def _plot_matrix(
    values: np.ndarray, names: list[str], colours: Colormap, ax: Axes
) -> Axes:
    """A square table in colour, scale fixed 0-1."""
    image = ax.imshow(values, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    labels = [plots.shorten(name, 18) for name in names]
    ax.set_xticks(range(len(names)), labels, rotation=90)
    ax.set_yticks(range(len(names)), labels)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    edges = np.arange(len(names) + 1) - 0.5
    ax.hlines(edges, -0.5, len(names) - 0.5, color=plots.FAINT, linewidth=0.4)
    ax.vlines(edges, -0.5, len(names) - 0.5, color=plots.FAINT, linewidth=0.4)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.03, pad=0.02, ticks=[0, 0.5, 1])
    bar.outline.set_visible(False)
    return ax


def _write_cells(
    ax: Axes, values: np.ndarray, shares: np.ndarray, template: str = "{:.0f}"
) -> None:
    """Write each value above 0 into its cell, light on dark."""
    for row, column in zip(*np.nonzero(values), strict=True):
        colour = "white" if shares[row, column] > 0.45 else plots.INK
        text = template.format(values[row, column])
        ax.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)


def _plot_worst_pairs(table: pd.DataFrame, ax: Axes | None) -> Axes:
    names = [
        f"{plots.shorten(a, 17)} / {plots.shorten(b, 17)}"
        for a, b in table[["class_a", "class_b"]].itertuples(index=False)
    ]
    ax = plots.make_rows(ax, []) if not names else _wide_rows(ax, names)
    rows = range(len(table))
    ax.barh(rows, table["a_as_b"], 0.7, color=plots.WARM)
    ax.barh(rows, table["b_as_a"], 0.7, left=table["a_as_b"], color="#e8a793")
    for row, (total, share) in enumerate(
        table[["mistakes", "share"]].itertuples(index=False)
    ):
        text = f" {total}  ({share:.0%} of both)"
        ax.text(total, row, text, va="center", fontsize=8)
    ax.grid(False)
    ax.set(
        xlabel="mistakes (pictures)   dark: first as second   light: second as first"
    )
    ax.set_xlim(0, max(1, table["mistakes"].max() * 1.25) if len(table) else 1)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_title(f"The {len(table)} most confused pairs of classes")
    return ax


def _wide_rows(ax: Axes | None, names: list[str]) -> Axes:
    """Rows whose names are already short enough."""
    ax = plots.make_rows(ax, names)
    ax.set_yticks(range(len(names)), names)
    return ax


def plot_reliability(
    table: pd.DataFrame, *, after: pd.DataFrame | None = None, ax: Axes | None = None
) -> Axes:
    """How often a stated probability comes true, with 95 % Wilson intervals.

    Args:
        table: `calibration.reliability`.
        after: the same after temperature scaling, drawn in blue.
        ax: where to draw.
    """
    ax = plots.make_axes(ax, 4.2, 4.6)
    images = table["images"] / table["images"].sum()
    width = table["to_probability"] - table["from_probability"]
    ax.bar(
        table["from_probability"],
        images,
        width,
        align="edge",
        color=plots.FAINT,
        zorder=0,
    )
    ax.plot([0, 1], [0, 1], color=plots.GREY, linewidth=1, linestyle=(0, (4, 3)))
    ax.vlines(
        table["confidence"], table["low"], table["high"], color=plots.WARM, alpha=0.5
    )
    ax.plot(table["confidence"], table["accuracy"], "o-", color=plots.WARM, ms=5, lw=1)
    if after is not None:
        x, y = after["confidence"], after["accuracy"]
        ax.plot(x, y, "s-", color=plots.COOL, ms=4, lw=1)
        ax.text(0.04, 0.86, "blue: temperature-scaled", color=plots.COOL, fontsize=8)
    ax.text(0.04, 0.93, "under-confident", color=plots.GREY, fontsize=8)
    ax.text(0.96, 0.04, "over-confident", color=plots.GREY, fontsize=8, ha="right")
    gaps = (table["confidence"] - table["accuracy"]).abs()
    error = float(np.average(gaps, weights=table["images"]))
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set_xlabel("stated probability   grey bars: share of pictures")
    ax.set_ylabel("accuracy, 0-1, with 95 % Wilson interval")
    ax.set_title(f"Reliability, calibration error {error:.3f}")
    return ax


def plot_flag_accuracy(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Accuracy of the pictures behind each data flag, with 95 % Wilson intervals.

    Args:
        table: `breakdown.by_flag`.
        ax: where to draw.
    """
    rows = table[table["flag"] != "(all)"].reset_index(drop=True)
    names = [
        f"{str(flag).replace('_', ' ')} · {images:,}"
        for flag, images in rows[["flag", "images"]].itertuples(index=False)
    ]
    ax = plots.make_rows(ax, names, 1.1)
    overall = float(table.loc[table["flag"] == "(all)", "accuracy"].iloc[0])
    below = (rows["high"] < overall).to_numpy()
    plots.draw_intervals(ax, rows, "accuracy", below)
    plots.mark_line(ax, overall, f"all pictures {overall:.3f}")
    low = float(rows["low"].min())
    ax.set_xlim(max(0.0, low - 0.05), 1 + 0.15 * (1 - low))
    ax.set_xlabel("accuracy, 0-1, with 95 % Wilson interval; red: below all pictures")
    ax.set_title("Accuracy by data flag (pictures)", pad=20)
    return ax


def plot_regions(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Attention on ink, lettering and paper of all pictures, beside their area.

    Args:
        table: `gradcam.region_table`; lettering counts the pictures that have some.
        ax: where to draw.
    """
    rows, names = [], []
    for region in gradcam.REGIONS:
        here = table[table[region] > 0]
        if len(here):
            rows.append((here[f"on_{region}"].dropna(), here[region]))
            names.append(f"{region} · {len(here):,} pictures")
    ax = plots.make_rows(ax, names, 1.4)
    for row, (looked, area) in enumerate(rows):
        _draw_spread(ax, area.to_numpy(), row + 0.16, plots.GREY)
        if len(looked):
            _draw_spread(ax, looked.to_numpy(), row - 0.16, plots.WARM)
            ratio = float(looked.mean()) / max(float(area.mean()), 1e-9)
            ax.text(1.02, row, f"{ratio:.1f} × its area", va="center", fontsize=8.5)
    ax.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6))
    ax.set_xlabel(
        "share, 0-1   red: of the attention   grey: of the picture, blind looking\n"
        "dot: median   thick: middle half   thin: middle 90 %"
    )
    ax.set_title("What is looked at")
    return ax


def _draw_spread(ax: Axes, values: np.ndarray, row: float, colour: str) -> None:
    """Median, middle half and middle 90 % of `values` on a row."""
    low, first, middle, third, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    ax.plot([low, high], [row, row], color=colour, linewidth=1)
    ax.plot([first, third], [row, row], color=colour, linewidth=4, alpha=0.6)
    ax.plot(middle, row, "o", color=colour, ms=5)


def plot_superclasses(
    table: pd.DataFrame, *, worst: int = 20, ax: Axes | None = None
) -> Axes:
    """Accuracy of the class and of the superclass, worst superclass first.

    Args:
        table: `breakdown.by_superclass`.
        worst: superclasses shown.
        ax: where to draw.
    """
    shown = table.head(worst).reset_index(drop=True)
    names = [
        f"{plots.shorten(name, 24)} · {images:,}"
        for name, images in shown[["superclass", "images"]].itertuples(index=False)
    ]
    ax = plots.make_rows(ax, names, 1.1)
    rows = range(len(shown))
    ends = shown[["accuracy", "superclass_accuracy"]]
    ax.hlines(rows, *ends.to_numpy().T, color=plots.FAINT, linewidth=3)
    ax.plot(ends["accuracy"], rows, "o", color=plots.WARM, ms=5)
    ax.plot(ends["superclass_accuracy"], rows, "D", color=plots.COOL, ms=5)
    for row, away in enumerate(shown["goes_to"]):
        if away:
            text = f"→ {plots.shorten(away, 22)}"
            ax.text(1.02, row, text, va="center", fontsize=7.5, color=plots.GREY)
    ax.set_xlim(max(0.0, float(ends.to_numpy().min()) - 0.1), 1.005)
    ax.set_xlabel(
        "accuracy, 0-1   ● the class itself   ◆ its superclass   → where others go"
    )
    ax.set_title(f"Superclasses, worst {len(shown)} of {len(table)} (pictures)")
    return ax


def plot_changes(
    table: pd.DataFrame, *, each: int = 10, ax: Axes | None = None
) -> Axes:
    """Pictures won and lost by class between two runs: most won, most lost.

    Args:
        table: `breakdown.compare_classes`.
        each: classes shown of either kind.
        ax: where to draw.
    """
    won = table[table["net"] > 0].sort_values("net", ascending=False).head(each)
    lost = table[table["net"] < 0].sort_values("net").head(each)
    shown = pd.concat([won, lost.iloc[::-1]]).reset_index(drop=True)
    ax = plots.make_rows(ax, shown["class_name"].tolist() or ["no class changed"], 1.1)
    rows = range(len(shown))
    ax.barh(rows, shown["gained"], 0.7, color=plots.COOL)
    ax.barh(rows, -shown["lost"], 0.7, color=plots.WARM)
    ax.axvline(0, color=plots.INK, linewidth=0.9)
    reach = max(1.0, float(shown[["gained", "lost"]].max().max()) * 1.2)
    ax.set(xlim=(-reach, reach) if len(shown) else (-1, 1))
    ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    ax.set_xlabel("pictures   blue: gained   red: lost")
    ax.set_title("Classes gained and lost")
    return ax


# --- ensembles --------------------------------------------------------------


def plot_agreement(
    matrix: pd.DataFrame,
    *,
    subject: str = "Share of pictures given the same class",
    ax: Axes | None = None,
) -> Axes:
    """A run × run table of shares, 0-1: `ensemble.agreement` or `ensemble.rescues`."""
    side = 0.42 * len(matrix) + 2.2
    ax = _plot_matrix(
        matrix.to_numpy(),
        list(matrix.index),
        plots.DEPTH,
        plots.make_axes(ax, side, side + 0.6),
    )
    if len(matrix) <= 15:
        _write_cells(ax, matrix.to_numpy(), matrix.to_numpy(), "{:.2f}")
    ax.set_title(textwrap.fill(subject, 6 * len(matrix) + 24))
    return ax


def plot_blend(table: pd.DataFrame, *, used: str = "", ax: Axes | None = None) -> Axes:
    """Members and their combinations by accuracy; the one used is accented.

    Args:
        table: `search.search_methods(...).table`.
        used: method that is used; empty accents the recommended one.
        ax: where to draw.
    """
    rows = table.rename(columns={"accuracy": "mean"})
    rows["marked"] = rows["method"] == used if used else rows["recommended"]
    single = float(table.loc[table["kind"] == "run", "accuracy"].max())
    ax = plots.plot_score_ladder(rows, baseline=single, ax=ax)
    for text in ax.texts:
        if text.get_text().startswith("baseline"):
            text.set_text(f"best single run {single:.3f}")
    accent = "used" if used else "recommended"
    ax.set_title(f"Combinations and their members; red: {accent}", pad=20)
    return ax


def plot_path(path: pd.DataFrame) -> Axes:
    """Accuracy after each step of the greedy search; below it which run was added.

    Args:
        path: step, added, accuracy (0-1), on the rows it was fitted on.
    Returns:
        The upper axes; the lower ones have a row per run, the first added on top.
    """
    runs = list(dict.fromkeys(path["added"]))
    _, (ax, below) = plt.subplots(
        2, 1, sharex=True, layout="constrained",
        figsize=(plots.WIDTH, 2.8 + 0.235 * len(runs)),
        height_ratios=[2.1, 0.1 + 0.235 * len(runs)],
    )  # fmt: skip
    ax.plot(path["step"], path["accuracy"], "o-", color=plots.COOL, ms=4, lw=1)
    low, high = path["accuracy"].min(), path["accuracy"].max()
    room = max(high - low, 0.01)
    ax.set(xlim=(0.5, len(path) + 0.5), ylim=(low - 0.2 * room, high + 0.2 * room))
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    ax.set_ylabel("accuracy, 0-1,\non the rows fitted")
    ax.set_title("Greedy search, step by step (flattered: not held out)")
    plots.make_rows(below, runs)
    rows = path["added"].map(runs.index)
    below.scatter(path["step"], rows, s=26, color=plots.COOL, zorder=3)
    below.set(xlabel="step", ylabel="added")
    for axes in (ax, below):
        axes.grid(axis="both")
    return ax
