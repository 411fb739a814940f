"""Pseudo-labels: test pictures that several runs agree on, as extra training rows.

The model of a fold learns only from labels given by models that did not see that
fold: each run's own fold model, its temperature fitted on the other folds. All runs
must agree and be certain enough; of a class no more than a given number is taken.
Limits: what the runs have in common, their mistakes too, is confirmed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sketchlib import workspace
from sketchlib.analysis import calibration
from sketchlib.training import extras, predictions
from sketchlib.training.predictions import Predictions


@dataclass(frozen=True)
class Asked:
    """Which labels are believed.

    Attributes:
        pseudo_runs: two or more finished 03_train runs; none is off.
        pseudo_confidence: calibrated probability of the least certain run, 0-1.
        pseudo_per_class: most pictures of a class, ≥ 1.
        pseudo_weight: of such a picture in the loss, 0-1.
    """

    pseudo_runs: Sequence[str]
    pseudo_confidence: float
    pseudo_per_class: int
    pseudo_weight: float

    def __post_init__(self) -> None:
        if len(set(self.pseudo_runs)) == 1:
            raise ValueError(
                "`pseudo_runs` should name two or more runs that have to agree, but "
                f"{list(self.pseudo_runs)} came; add a run, best of another model"
            )


def make_pseudo(
    asked: Asked, runs_dir: Path, table: pd.DataFrame, folds: pd.DataFrame
) -> pd.DataFrame:
    """Rows of `extras.COLUMNS` for every fold and for the model of all rows.

    Args:
        asked: see there.
        runs_dir: where the runs are.
        table: the manifest.
        folds: `image_id, group, fold`; a test picture that has an entry in `groups`
            of a training picture is left out by `drop_copies`.
    Raises:
        FileNotFoundError: a run lacks the predictions of a fold.
        ValueError: a run was trained on other folds.
    """
    parts = [pd.DataFrame(columns=extras.COLUMNS)]
    if asked.pseudo_runs:
        for fold in [*sorted(folds["fold"].unique()), extras.ALL_ROWS]:
            given = [
                _read_fold(runs_dir / run, int(fold), table, folds)
                for run in asked.pseudo_runs
            ]
            parts.append(choose_labels(given, asked).assign(serves=int(fold)))
    found = pd.concat([part for part in parts if len(part)] or parts[:1])
    paths = table.set_index("image_id")["path"]
    found["path"] = found["image_id"].map(paths)
    found["root"] = ""
    found["source"] = "pseudo: " + " + ".join(asked.pseudo_runs)
    return found[extras.COLUMNS].reset_index(drop=True)


def _read_fold(
    run_dir: Path, fold: int, table: pd.DataFrame, folds: pd.DataFrame
) -> Predictions:
    """Calibrated test predictions of a run's model that did not see `fold`."""
    oof = predictions.read_predictions(run_dir / "oof.npz")
    ours = folds.set_index("image_id")["fold"].reindex(oof.image_ids).to_numpy()
    if (ours != oof.fold).any():
        odd = oof.image_ids[ours != oof.fold][0]
        raise ValueError(
            f"run {run_dir.name!r} held out {odd!r} in another fold than this run "
            "does, so that its labels would tell this fold's answers; take runs of "
            "the same `audit_run`"
        )
    folder = run_dir / f"fold{fold}" if fold >= 0 else run_dir
    test = predictions.read_predictions(folder / "test.npz")
    others = oof.fold != fold
    rest = Predictions(
        oof.image_ids[others], oof.classes, oof.logits[others], oof.fold[others]
    )
    return calibration.apply_temperature(test, calibration.fit_temperature(rest, table))


def choose_labels(given: Sequence[Predictions], asked: Asked) -> pd.DataFrame:
    """`image_id, label, weight` of the pictures that all of `given` agree on.

    Of each class the most certain `pseudo_per_class`.
    """
    for part in given[1:]:
        if list(part.image_ids) != list(given[0].image_ids):
            raise ValueError("the `pseudo_runs` should have the same test pictures")
        if list(part.classes) != list(given[0].classes):
            raise ValueError("the `pseudo_runs` should have the same classes")
    named = np.stack([part.probs.argmax(1) for part in given])  # (M, N)
    certain = np.stack([part.probs.max(1) for part in given]).min(0)
    agree = (named == named[0]).all(0) & (certain >= asked.pseudo_confidence)
    found = pd.DataFrame(
        {
            "image_id": given[0].image_ids[agree],
            "label": named[0][agree].astype(np.int64),
            "certain": certain[agree],
            "weight": asked.pseudo_weight,
        }
    )
    found = found.sort_values("certain", ascending=False, kind="stable")
    kept = found.groupby("label").head(asked.pseudo_per_class)
    return kept.drop(columns="certain").sort_values("image_id")


def drop_copies(pseudo: pd.DataFrame, audit_dir: Path) -> pd.DataFrame:
    """Without test pictures that 01_eda found to be copies of training pictures.

    Their label would be the training picture's, given a second time.
    """
    path = audit_dir / "groups.csv"
    if pseudo.empty or not path.exists():
        return pseudo
    groups = pd.read_csv(path, keep_default_na=False)
    group = groups.set_index("image_id")["group"]
    train = set(group[group.index.str.startswith("train/")])
    return pseudo[~pseudo["image_id"].map(group).isin(train)]


def gather(
    asked: Asked,
    extra: pd.DataFrame,
    audit_dir: Path,
    table: pd.DataFrame,
    folds: pd.DataFrame,
) -> pd.DataFrame:
    """Extra pictures and pseudo-labels below each other; both may be none."""
    made = make_pseudo(asked, audit_dir.parent, table, folds)
    parts = [part for part in (extra, drop_copies(made, audit_dir)) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else extra


def check_apart(asked: Asked, run_name: str, runs_dir: Path) -> None:
    """Raise ValueError where a run would learn from itself, or from its own kind."""
    for run in asked.pseudo_runs:
        if run == run_name:
            raise ValueError(f"`pseudo_runs` should be other runs, but has {run!r}")
        path = runs_dir / run / "run.json"
        record = workspace.read_json(path) if path.exists() else {}
        if record.get("parameters", {}).get("all_rows"):
            raise ValueError(
                f"run {run!r} predicts the test pictures with a model that saw every "
                "row (`all_rows`), so that its labels would tell each fold's answers; "
                "take a run without"
            )
