"""Figures of a data set as a whole that are no scores: colour, the leakage ladder.

Tables in, Axes out, in the manner of `plots`. Limits: as there.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sketchlib.analysis import plots

_COLOURFUL = 5.0  # colourfulness below which tint is a scanner's, not the drawer's


def plot_colour(findings: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """How colourful the readable pictures are; grey ones stand in the title."""
    seen = findings[findings["readable"].astype(bool)]
    values = seen["colourfulness"].to_numpy(float)
    tinted = values[values > 0]
    top = float(max(np.quantile(tinted, 0.99), 1.0)) if len(tinted) else 1.0
    if ax is None:
        ax = plots.plt.subplots(figsize=(5.2, 2.6), layout="constrained")[1]
    ax.hist(tinted.clip(max=top), bins=50, range=(0, top), color=plots.PALE)
    share = float((values > _COLOURFUL).mean()) if len(values) else 0.0
    ax.set(xlim=(0, top), ylabel="pictures")
    ax.set_xlabel("colourfulness, Hasler and Süsstrunk   pure grey is not drawn")
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_title(f"Colour: {share:.1%} of {len(values):,} pictures have some")
    return ax


def make_ladder(found: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of `leakage.measure` for `plots.plot_score_ladder`."""
    names = {"board_like": "board-like: plain folds", "honest": "honest: copies whole"}
    columns = {"mean": "accuracy", "low": "low", "high": "high"}
    return pd.DataFrame(
        [
            {"name": name} | {new: found[key][old] for new, old in columns.items()}
            for key, name in names.items()
        ]
    )
