"""What the vote of the folds brings, against one of them and one of all rows.

Usage: python benchmarks/fold_votes.py DATA_DIR RUNS_DIR [AUDIT_RUN]
The last fold of a finished 01_eda run is set aside, groups of copies whole, and plays
the test set; the others train as 03_train would with params/03_train/gains.yaml, and
one more network trains on all their rows. Each gain is paired, its interval draws
groups.
"""

import dataclasses
import sys
from pathlib import Path

import pandas as pd
from table import plain_row, write_rows

from sketchlib import workspace
from sketchlib.analysis import scores
from sketchlib.data import cache, manifest
from sketchlib.training import compute, folds, loop, predictions
from sketchlib.workbook import parameters, session


def main(data_dir: Path, runs_dir: Path, audit: str) -> None:
    file = workspace.repo_root() / "params" / "03_train" / "gains.yaml"
    values = session.read_defaults("03_train") | parameters.read_overrides(file)
    table = manifest.read_manifest(data_dir)
    groups = pd.read_csv(runs_dir / audit / "folds.csv", dtype={"image_id": str})
    task = make_task(table, groups, values, (data_dir, runs_dir))
    count = int(task.folds["fold"].max()) + 1
    voters = [folds.train_fold(task, fold).test for fold in range(count)]
    whole = folds.train_fold(task, -1).test
    vote = predictions.average(voters)
    single = [scores.compare(one, vote, table, groups) for one in voters]
    against = scores.compare(whole, vote, table, groups)
    middle = sorted(single, key=lambda one: one.gain)[len(single) // 2]
    rows = [
        ("the vote of the folds against one of them", middle),
        ("the vote of the folds against one network of all rows", against),
    ]
    shown = [
        plain_row(
            name,
            f"{100 * one.gain:+.1f} points ({100 * one.low:+.1f} to "
            f"{100 * one.high:+.1f})",
            "> 0",
            one.low > 0,
        )
        for name, one in rows
    ]
    write_rows("fold_votes", shown)
    for fold, one in enumerate(single):
        print(f"fold {fold}: {one.accuracy_a:.3f} alone, the vote {one.accuracy_b:.3f}")
    print(f"all rows: {against.accuracy_a:.3f}; {against.images} pictures set aside")


def make_task(
    table: pd.DataFrame,
    groups: pd.DataFrame,
    values: dict[str, object],
    places: tuple[Path, Path],
) -> folds.Task:
    """The task of the other folds, with the last one as its test pictures."""
    data_dir, runs_dir = places
    last = groups["fold"].max()
    aside = groups.loc[groups["fold"] == last, "image_id"]
    kept = manifest.train_rows(table)
    kept = kept.assign(
        subset=kept["subset"].mask(kept["image_id"].isin(aside), "test"),
    )
    geometry = workspace.pick(cache.Geometry, values)
    network = workspace.pick(folds.Network, values)
    recipe = workspace.pick(loop.Recipe, values)
    way = compute.choose_compute(
        network.outline(len(manifest.class_names(table)), recipe),
        (recipe.batch_size, 1, geometry.side_px),
        precision="auto",
        layout="auto",
        norm=recipe.norm,
        remember=runs_dir / "cache" / "compute.json",
    )
    return folds.Task(
        kept,
        groups[groups["fold"] < last],
        cache.open_pixels(table, data_dir, geometry, runs_dir / "cache"),
        dataclasses.replace(network, side_px=geometry.side_px),
        recipe,
        way,
        ("hflip",),
        run_dir=runs_dir / "bench_votes",
        cache_dir=runs_dir / "cache",
        workers=0,
        fresh=False,
    )


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0]), Path(given[1]), given[2] if len(given) > 2 else "audit")
