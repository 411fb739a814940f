"""Heads on a feature bank: 5 folds × 3 heads × 3 seeds, timed, with their accuracy.

Usage: python benchmarks/feature_bank.py DATA_DIR RUNS_DIR [AUDIT_RUN]
Reads the folds of a finished 01_eda run; the bank is computed on the first call.
"""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from table import limit_row, write_rows

from sketchlib import workspace
from sketchlib.data import cache, manifest, splits
from sketchlib.training import bank, compute, folds, loop
from sketchlib.workbook import session

DRAWS, ROUNDS = 4, 3
LAYERS = ("linear", "mlp", "multi_dropout")
SETTINGS = {
    "frozen": True,
    "epochs": 12,
    "batch_size": 256,
    "lr": 0.003,
    "weight_decay": 0.05,
    "label_smoothing": 0.1,
    "drop_rate": 0.3,
    "head": "random",
}


def main(data_dir: Path, runs_dir: Path, audit: str) -> None:
    values = session.read_defaults("03_train") | SETTINGS
    table = manifest.read_manifest(data_dir)
    path = runs_dir / audit / "folds.csv"
    found = pd.read_csv(path) if path.exists() else splits.make_folds(table, None, 5, 0)
    geometry = workspace.pick(cache.Geometry, values)
    task = folds.Task(
        table,
        found,
        cache.open_pixels(table, data_dir, geometry, runs_dir / "cache"),
        workspace.pick(folds.Network, values),
        workspace.pick(loop.Recipe, values),
        compute.Compute(compute.find_device(), "fp32", "channels_last", 0.0),
        ("hflip",),
        run_dir=runs_dir / "bench_bank",
        cache_dir=runs_dir / "cache",
        workers=0,
        fresh=True,
    )
    started = time.perf_counter()
    ready = folds.with_bank(task, DRAWS, [])
    seconds = time.perf_counter() - started
    print(f"bank {ready.feature_bank.features.shape}: {seconds:.0f} s")
    spent = []
    for _ in range(ROUNDS):
        rows = [
            {"head": layers, "seed": seed} | train(ready, layers, seed)
            for layers in LAYERS
            for seed in range(3)
        ]
        spent.append(sum(row["seconds"] for row in rows))
    made = pd.DataFrame(rows)
    print(made.groupby("head")[["accuracy", "seconds"]].agg(["mean", "std"]).round(4))
    heads = len(rows) * found["fold"].nunique()
    line = f"heads on a feature bank, {heads} of them"
    write_rows("feature_bank", [limit_row(line, spent, "s", 60.0)])
    for draws in (0, 1, 2, DRAWS):
        print(f"views drawn {draws}: accuracy {few_views(ready, draws):.4f}")


def few_views(ready: folds.Task, draws: int) -> float:
    """Accuracy of the linear head when only so many draws are there."""
    full = ready.feature_bank
    kept = [
        number
        for number, name in enumerate(full.views)
        if "#" not in name or int(name.rpartition("#")[2]) < draws
    ]
    names = [full.views[number] for number in kept]
    less = bank.Bank(full.features[kept], full.image_ids, names)
    recipe = ready.recipe
    if not draws:
        recipe = dataclasses.replace(recipe, augment="none")
    ready = dataclasses.replace(ready, feature_bank=less, recipe=recipe)
    return train(ready, "linear", 0)["accuracy"]


def train(ready: folds.Task, layers: str, seed: int) -> dict[str, float]:
    """Out-of-fold accuracy and seconds of one head over all folds."""
    ready = dataclasses.replace(
        ready,
        network=dataclasses.replace(ready.network, head_layers=layers),
        recipe=dataclasses.replace(ready.recipe, seed=seed),
    )
    started, hits = time.perf_counter(), []
    truth = ready.table.set_index("image_id")["label"]
    for fold in range(int(ready.folds["fold"].max()) + 1):
        oof = folds.train_fold(ready, fold).oof
        hits.append(oof.labels == truth.loc[oof.image_ids].to_numpy())
    accuracy = float(np.concatenate(hits).mean())
    return {"accuracy": accuracy, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0]), Path(given[1]), given[2] if len(given) > 2 else "audit")
