"""What the curves of a training say, in words and against chance.

Limits: a reading of means over folds, by rules of thumb.
"""

import numpy as np
import pandas as pd


def class_balance(labels: np.ndarray, classes: int) -> float:
    """Accuracy of always naming the largest class: the level of chance, 0-1."""
    return float(np.bincount(labels, minlength=classes).max() / max(len(labels), 1))


def read_curves(history: pd.DataFrame) -> str:
    """Over- or underfitting, in words with the figures, from the mean over folds.

    Args:
        history: fold, epoch, train_loss, valid_loss.
    """
    curves = history.groupby("epoch")[["train_loss", "valid_loss"]].mean()
    if curves["valid_loss"].isna().all() or len(curves) < 3:
        return "Too few epochs, or nothing held out: no reading of the curves."
    low = curves["valid_loss"].idxmin()
    rise = curves["valid_loss"].iloc[-1] / curves["valid_loss"].min() - 1
    last = curves["valid_loss"].iloc[-1]
    recent = 1 - last / curves["valid_loss"].iloc[-max(2, len(curves) // 3) - 1]
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
