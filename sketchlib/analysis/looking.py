"""A finished run, opened to be looked into: its pixels, its models, its attention.

Every drawing is shown to the model that did not train on it. Limits: needs the
run's weights; a folder copied without them can be scored but not looked into.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sketchlib import workspace
from sketchlib.analysis import gradcam
from sketchlib.data import cache, manifest
from sketchlib.training import datasets, folds, models


@dataclass(frozen=True)
class Glass:
    """One run to look into.

    Attributes:
        run_dir: folder of the 03_train run.
        network: its model.
        pixels: the cache it was trained on.
        classes: K names.
    """

    run_dir: Path
    network: folds.Network
    pixels: cache.PixelCache
    classes: Sequence[str]

    def pictures(self, rows: pd.DataFrame) -> list[np.ndarray]:
        """The cached pixels of `rows`, (S, S) or (S, S, 3) uint8 each."""
        found = self.pixels.rows(rows["image_id"])
        return [np.array(self.pixels.pixels[row]) for row in found]

    def attend(
        self, rows: pd.DataFrame, *, method: str, column: str, batch: int = 16
    ) -> np.ndarray:
        """Attention maps, each from the model of the fold that held the drawing out.

        Args:
            rows: image_id, fold, and `column`.
            method: see `gradcam.make_cam`.
            column: which class to explain: `predicted` or `class_name`.
            batch: pictures at once.
        Returns:
            (N, S, S) float32, 0-1.
        """
        side = self.pixels.geometry.side_px
        cams = np.zeros((len(rows), side, side), np.float32)
        position = {name: number for number, name in enumerate(self.classes)}
        targets = rows[column].map(position).to_numpy()
        for fold in sorted(rows["fold"].unique()):
            model = folds.load_model(
                self.run_dir, int(fold), self.network, len(self.classes)
            )
            mean, std = models.input_stats(model)
            held = np.flatnonzero((rows["fold"] == fold).to_numpy())
            for part in np.array_split(held, max(1, len(held) // batch)):
                pictures = self.pictures(rows.iloc[part])
                images = torch.stack([datasets.as_tensor(one) for one in pictures])
                cams[part] = gradcam.make_cam(
                    model,
                    datasets.to_input(images, mean, std),
                    torch.as_tensor(targets[part]),
                    method=method,
                )
        return cams


def open_run(
    record: dict[str, Any],
    run_dir: Path,
    table: pd.DataFrame,
    data_dir: Path,
    cache_dir: Path,
) -> Glass:
    """Open the run whose `run.json` is `record`.

    Raises:
        ValueError: the run is not a finished 03_train run.
    """
    if "network" not in record or "geometry" not in record:
        raise ValueError(
            f"{run_dir} should be a finished 03_train run, but its run.json names no "
            f"network (state {record.get('state')!r}); run 03_train to its end first"
        )
    geometry = workspace.pick(cache.Geometry, record["geometry"])
    pixels = cache.open_pixels(table, data_dir, geometry, cache_dir)
    network = workspace.pick(folds.Network, record["network"])
    return Glass(run_dir, network, pixels, manifest.class_names(table))
