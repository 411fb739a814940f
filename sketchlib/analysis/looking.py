"""A finished run, opened to be looked into: its pixels, its models, its attention.

Every drawing is shown to the model that did not train on it. Limits: needs the
run's weights; a folder copied without them can be scored but not looked into.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from sketchlib import workspace
from sketchlib.analysis import gradcam
from sketchlib.data import cache, manifest
from sketchlib.training import datasets, models, trained
from sketchlib.training.network import Network


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
    network: Network
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
            model = trained.load_model(
                self.run_dir, int(fold), self.network, len(self.classes)
            )
            mean, std = models.input_stats(model)
            held = np.flatnonzero((rows["fold"] == fold).to_numpy())
            for part in np.array_split(held, max(1, len(held) // batch)):
                pictures = self.pictures(rows.iloc[part])
                images = datasets.as_batch(pictures)
                cams[part] = gradcam.make_cam(
                    model,
                    datasets.to_input(images, mean, std),
                    torch.as_tensor(targets[part]),
                    method=method,
                )
        return cams

    def recognise(
        self, drawing: np.ndarray, *, method: str, top: int = 5
    ) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
        """What the run's models take a new drawing for, and where they look.

        Args:
            drawing: (H, W) or (H, W, 3) uint8, any size.
            method: see `gradcam.make_cam`.
            top: classes told.
        Returns:
            class_name and probability (mean of the folds' models) of the likeliest;
            the drawing as the models see it, uint8; the mean map (S, S), 0-1.
        """
        seen = cache.fit_picture(drawing, self.pixels.geometry)
        image = datasets.as_tensor(seen)[None]
        probs, cams = [], []
        for model in self._models():
            inputs = datasets.to_input(image, *models.input_stats(model))
            with torch.inference_mode():
                probs.append(model(inputs).softmax(-1)[0].double().numpy())
        mean = np.mean(probs, axis=0)
        best = np.argsort(-mean, kind="stable")[:top]
        target = torch.as_tensor(best[:1])
        for model in self._models():
            inputs = datasets.to_input(image, *models.input_stats(model))
            cams.append(gradcam.make_cam(model, inputs, target, method)[0])
        table = pd.DataFrame(
            {
                "class_name": [self.classes[k] for k in best],
                "probability": mean[best],
            }
        )
        return table, seen, np.mean(cams, axis=0)

    def _models(self) -> Iterator[nn.Module]:
        """The model of each fold, one at a time."""
        numbers = sorted(
            int(path.parent.name.removeprefix("fold"))
            for path in self.run_dir.glob("fold*/model.safetensors")
        )
        if not numbers:
            raise FileNotFoundError(
                f"`fold0/model.safetensors` was expected in {self.run_dir}; run "
                "folders copied without weights can be blended, but not looked into"
            )
        for number in numbers:
            yield trained.load_model(
                self.run_dir, number, self.network, len(self.classes)
            )


def has_weights(run_dir: Path) -> bool:
    """Whether a run can be looked into; folders copied without weights cannot."""
    return any(run_dir.glob("fold*/model.safetensors"))


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
    for kind, part in ((Network, "network"), (cache.Geometry, "geometry")):
        _check_complete(kind, record, part, run_dir)
    geometry = workspace.pick(cache.Geometry, record["geometry"])
    pixels = cache.open_pixels(table, data_dir, geometry, cache_dir)
    network = workspace.pick(Network, record["network"])
    return Glass(run_dir, network, pixels, manifest.class_names(table))


def _check_complete(
    kind: type, record: dict[str, Any], part: str, run_dir: Path
) -> None:
    """Raise ValueError where a record of an older version lacks newer settings."""
    fields = [field.name for field in dataclasses.fields(kind)]
    missing = [name for name in fields if name not in record[part]]
    if missing:
        raise ValueError(
            f"`{part}` in {run_dir / 'run.json'} should name {', '.join(missing)}, but "
            "was written by an older version; train it again under another `run_name`, "
            f"or look into it at its commit {record.get('commit') or '(unknown)'}"
        )
