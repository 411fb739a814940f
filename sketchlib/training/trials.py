"""One trial of a search: a run of its own, in this process instead of a kernel.

A trial writes what 03_train writes (`run.json`, `metrics.jsonl`, `fold<k>/`,
`oof.npz`) into its own run folder, so that it shows in the index and resumes at its
last epoch. Limits: it predicts no test pictures and keeps no weights; the best ones
are trained again on all folds for that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sketchlib import workspace
from sketchlib.data import cache, manifest
from sketchlib.training import (
    capacity,
    composites,
    compute,
    features,
    folds,
    loop,
    predictions,
    recipes,
    supply,
    trained,
)
from sketchlib.training import recipe as recipe_rules

Values = Mapping[str, Any]
OnEpoch = Callable[[int, dict[str, float]], None]  # (fold, row)


@dataclass(frozen=True)
class World:
    """What all trials of a search share: the data, the folds, where runs go."""

    table: pd.DataFrame
    folds: pd.DataFrame
    data_dir: Path
    runs_dir: Path

    @property
    def cache_dir(self) -> Path:
        return self.runs_dir / "cache"


def make_task(world: World, values: Values, run_dir: Path, *, test: bool) -> folds.Task:
    """The task 03_train would make of these parameters.

    Args:
        world: see there.
        values: every parameter of 03_train.
        run_dir: the trial's run folder.
        test: whether test pictures are predicted.
    """
    values = dict(values)
    values["augment"] = recipes.find_winner(values["augment"], world.runs_dir)
    network = workspace.pick(folds.Network, values)
    network.check()
    columns = manifest.make_columns(values["columns"])
    asked = workspace.pick(composites.Asked, values)
    targets, _ = composites.read_targets(asked, network.head, world.data_dir, columns)
    rule = workspace.pick(recipe_rules.Recipe, values)
    channels = 1 if values["channels"] == "grey" else 3
    classes = len(manifest.class_names(world.table))
    way = compute.choose_compute(
        network.outline(classes, rule),
        (rule.batch_size, channels, network.side_px),
        precision=values["precision"],
        layout=values["layout"],
        depthwise=values["depthwise"],
        norm=rule.norm,
        remember=world.cache_dir / "compute.json",
    )
    geometry = workspace.pick(cache.Geometry, values)
    pixels = cache.open_pixels(world.table, world.data_dir, geometry, world.cache_dir)
    task = folds.Task(
        table=world.table if test else manifest.train_rows(world.table),
        folds=world.folds,
        pixels=pixels,
        network=network.with_stats(pixels),
        recipe=rule,
        way=way,
        tta=tuple(values["tta"]),
        run_dir=run_dir,
        cache_dir=world.cache_dir,
        workers=values["workers"],
        fresh=False,
        save_minutes=values["save_minutes"],
        targets=targets,
    )
    task, _ = capacity.settle(task, values["lr_rule"], values["lr_batch"], 1)
    return supply.settle(task, 1)[0]


def train(
    task: folds.Task, count: int, on_epoch: OnEpoch | None = None
) -> predictions.Predictions:
    """Fine-tune the first `count` folds; their held-out rows, also in `oof.npz`."""

    def follow(fold: int) -> Callable[[dict[str, float]], None] | None:
        return (lambda row: on_epoch(fold, row)) if on_epoch else None

    results = {
        fold: folds.train_fold(task, fold, follow(fold)) for fold in range(count)
    }
    oof, _ = trained.join_results(results, task.run_dir)
    history = trained.join_histories(results, task.run_dir)
    with workspace.atomic_path(task.run_dir / "history.csv") as temporary:
        history.to_csv(temporary, index=False)
    return oof


def probe(task: folds.Task, count: int, strength: float) -> predictions.Predictions:
    """A linear head on frozen features, held out on the same folds as `train`."""
    rows = manifest.train_rows(task.table).merge(
        task.folds[["image_id", "fold"]], on="image_id"
    )
    rows.loc[rows["fold"] >= count, "fold"] = -1
    oof = features.probe_folds(
        folds.extract(task)[:, task.pixels.rows(rows["image_id"])],
        rows["label"].to_numpy(),
        rows,
        manifest.class_names(task.table),
        strength=strength,
    )
    predictions.write_predictions(task.run_dir / "oof.npz", oof)
    return oof


def score(oof: predictions.Predictions, table: pd.DataFrame) -> dict[str, float]:
    """Accuracy (0-1) and log loss (nats) of held-out rows."""
    truth = table.set_index("image_id").loc[oof.image_ids, "label"].to_numpy()
    own = oof.probs[np.arange(len(truth)), truth]
    return {
        "accuracy": float((oof.labels == truth).mean()),
        "log_loss": float(-np.log(np.maximum(own, 1e-12)).mean()),
    }


def drop_weights(run_dir: Path) -> None:
    """Remove a trial's weights and checkpoints; the search would fill the disk."""
    for fold_dir in run_dir.glob("fold*"):
        loop.release(fold_dir)
        (fold_dir / "model.safetensors").unlink(missing_ok=True)


def run_full(
    world: World, values: Values, run: workspace.Run, on_epoch: OnEpoch | None = None
) -> predictions.Predictions:
    """All folds with weights and test predictions, as 03_train leaves them."""
    task = make_task(world, values, run.dir, test=True)
    count = int(world.folds["fold"].max()) + 1
    oof = train(task, count, on_epoch)
    run.note(network=task.network, geometry=task.pixels.geometry, folds=count)
    return oof


def with_model(values: Values, model: str) -> dict[str, Any]:
    """The same recipe for another model; pretrained stays so, with its own weights."""
    weights = "none" if values["weights"] == "none" else "auto"
    return dict(values) | {"model": model, "weights": weights}
