"""Curves of a training: loss, accuracy, learning rate and time by epoch.

Folds of a budget differ in length. A mean over those still running at an epoch would
end as the mean of the longest alone, so shorter ones are stretched to the longest:
the last point of every mean is that of all folds' ends.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sketchlib.analysis import plots


def plot_history(history: pd.DataFrame) -> Figure:
    """Loss and validation accuracy by epoch: folds thin, their mean bold.

    Args:
        history: fold, epoch, train_loss, valid_loss (nats), valid_accuracy (0-1),
            lr; validation columns may be missing or NaN.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(plots.WIDTH, 3.3), layout="constrained"
    )
    _plot_curves(left, history, "train_loss", plots.GREY, "training")
    _plot_curves(left, history, "valid_loss", plots.WARM, "validation")
    left.set(xlabel=_name_epochs(history), ylabel="loss, nats")
    left.set_title("Loss")
    left.set_ylim(bottom=0)
    _plot_curves(right, history, "valid_accuracy", plots.WARM, "mean")
    right.set(xlabel=_name_epochs(history), ylabel="accuracy, 0-1")
    right.set_title("Validation accuracy")
    for ax in (left, right):
        ax.grid(axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        _spread_labels(ax)
    return figure


def plot_pace(history: pd.DataFrame) -> Figure:
    """Learning rate at the end of each epoch, and the seconds it took.

    Args:
        history: fold, epoch, lr, seconds.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(plots.WIDTH, 2.6), layout="constrained"
    )
    _plot_curves(left, history, "lr", plots.GREY)
    title = f"Learning rate, at most {history['lr'].max():.2g}"
    epochs = _name_epochs(history)
    left.set(xlabel=epochs, ylabel="learning rate", title=title)
    left.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    _plot_curves(right, history, "seconds", plots.GREY)
    middle = history["seconds"].median()
    title = f"Time per epoch, median {middle:.3g} s"
    right.set(xlabel=epochs, ylabel="seconds", title=title)
    for ax in (left, right):
        ax.set_ylim(bottom=0)
        ax.grid(axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure


def plot_rate_search(
    curve: pd.DataFrame, chosen: float, *, ax: Axes | None = None
) -> Axes:
    """Loss while the learning rate rises, and the rate that was chosen.

    Args:
        curve: lr, loss; from `loop.find_lr`.
        chosen: the rate taken.
        ax: where to draw.
    """
    ax = plots.make_axes(ax, 2.6)
    ax.plot(curve["lr"], curve["loss"], color=plots.GREY, linewidth=1)
    smooth = curve["loss"].ewm(alpha=0.3).mean()
    ax.plot(curve["lr"], smooth, color=plots.WARM, linewidth=2)
    ax.axvline(chosen, color=plots.GREY, linestyle="--", linewidth=1)
    ax.set(xscale="log", xlabel="learning rate", ylabel="loss, nats")
    ax.set_title(f"Loss at rising rates; dashed: {chosen:.1e}")
    return ax


def align_folds(history: pd.DataFrame, column: str) -> pd.DataFrame:
    """One column a fold, one row an epoch of the longest; shorter folds are stretched.

    Args:
        history: fold, epoch (from 1), and the column.
        column: its name.
    """
    lengths = history.groupby("fold")["epoch"].max()
    epochs = np.arange(1, lengths.max() + 1)
    aligned = {}
    for fold, rows in history.sort_values("epoch").groupby("fold"):
        own = np.linspace(1, epochs[-1], len(rows)) if len(rows) > 1 else [1]
        aligned[fold] = np.interp(epochs, own, rows[column])
    return pd.DataFrame(aligned, index=epochs)


def _name_epochs(history: pd.DataFrame) -> str:
    """The label of an axis of epochs."""
    lengths = history.groupby("fold")["epoch"].max()
    stretched = lengths.nunique() > 1
    return "epoch of the longest fold, others stretched" if stretched else "epoch"


def _spread_labels(ax: Axes) -> None:
    """Move the labels at the line ends apart, a twelfth of the axis at least."""
    low, high = ax.get_ylim()
    least, floor = (high - low) / 12, -np.inf
    for text in sorted(ax.texts, key=lambda one: one.get_position()[1]):
        x, y = text.get_position()
        floor = max(y, floor + least)
        text.set_position((x, floor))


def _plot_curves(
    ax: Axes, history: pd.DataFrame, column: str, colour: str, name: str = ""
) -> None:
    """One thin line per fold, the mean bold, under a name its last value too."""
    if column not in history or history[column].isna().all():
        return
    table = align_folds(history, column)
    if table.shape[1] > 1:
        ax.plot(table.index, table, color=colour, alpha=0.35, linewidth=0.8)
    mean = table.mean(axis=1)
    ax.plot(mean.index, mean, color=colour, linewidth=2, marker="o", ms=3)
    if not name:
        return
    text = f"  {name} {mean.iloc[-1]:.3f}"
    ax.text(
        mean.index[-1], mean.iloc[-1], text, color=colour, fontsize=8.5, va="center"
    )


# --- in words ----------------------------------------------------------------


def class_balance(labels: np.ndarray, classes: int) -> float:
    """Accuracy of always naming the largest class: the level of chance, 0-1."""
    return float(np.bincount(labels, minlength=classes).max() / max(len(labels), 1))


def read_curves(history: pd.DataFrame) -> str:
    """Over- or underfitting, in words with the figures, from the mean over folds.

    Args:
        history: fold, epoch, valid_loss.
    """
    curve = align_folds(history, "valid_loss").mean(axis=1)
    if curve.isna().all() or len(curve) < 3:
        return "Too few epochs, or nothing held out: no reading of the curves."
    low, last = curve.idxmin(), curve.iloc[-1]
    rise = last / curve.min() - 1
    recent = 1 - last / curve.iloc[-max(2, len(curve) // 3) - 1]
    if rise > 0.05:
        return (
            f"**Overfitting**: the held-out loss was lowest in epoch {low} and has "
            f"risen {rise:.0%} since; augment more, or train for fewer epochs."
        )
    if recent > 0.1:
        return (
            f"**Still learning**: the held-out loss fell {recent:.0%} over the last "
            "third of the epochs; more epochs may help."
        )
    return (
        f"**Settled**: over the last third of the epochs the held-out loss moved by "
        f"{abs(recent):.0%}; more epochs of the same will change little."
    )
