"""How much of a score is copies, and what contradictory labels cost, both measured.

The same linear probe is scored on plain stratified folds, where copies of one
drawing sit on both sides as they do across train and test, and on folds that keep
groups whole. The first reads like the board, the second is honest. Limits: a probe
on frozen features profits from copies less than a network that can learn them by
heart, so the gap is a lower bound for a fine-tuned model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sketchlib.analysis import likeness, scores
from sketchlib.data import conflicts, splits

_REPEATS = 3  # shuffles of the folds, so that the luck of one is not the finding
_ENOUGH = 10_000  # predictions from which one shuffle will do


@dataclass(frozen=True)
class Data:
    """What a probe needs of the training rows.

    Attributes:
        table: manifest rows, `image_id, label, class_name, subset`.
        seen: (N, D) standardised features, in the order of `table`.
        groups: `image_id, group`, which folds keep whole.
        folds: number of folds.
        seed: of folds and bootstrap.
    """

    table: pd.DataFrame
    seen: np.ndarray
    groups: pd.DataFrame
    folds: int
    seed: int

    @property
    def labels(self) -> np.ndarray:
        """(N,) class numbers."""
        return self.table["label"].to_numpy()

    @property
    def codes(self) -> np.ndarray:
        """(N,) group numbers, for the bootstrap."""
        return scores.group_codes(self.table["image_id"].to_numpy(str), self.groups)

    @property
    def repeats(self) -> int:
        """How often the folds are shuffled: once where pictures abound."""
        return max(1, min(_REPEATS, _ENOUGH // len(self.table)))

    def make_folds(self, groups: pd.DataFrame | None, repeat: int) -> np.ndarray:
        """(N,) folds of one shuffle."""
        made = splits.make_folds(self.table, groups, self.folds, self.seed + repeat)
        return made.set_index("image_id").loc[self.table["image_id"], "fold"].to_numpy()


def measure(data: Data) -> dict[str, Any]:
    """The probe on plain folds against group folds, for `leakage.json`.

    Returns:
        `board_like` and `honest` (accuracy, low, high: 95 %), `gap` (gain, low,
        high), `copied` (pictures with a copy in training, and the probe's accuracy
        on them by either way), `images`, `folds`, `repeats`.
    """
    targets, labels = likeness.one_hot(data.labels), data.labels
    right = np.zeros((2, len(labels)))
    for repeat in range(data.repeats):
        for row, groups in enumerate((None, data.groups)):
            fold = data.make_folds(groups, repeat)
            right[row] += likeness.probe(data.seen, targets, fold) == labels
    plain, honest = right / data.repeats
    codes = data.codes
    sizes = np.bincount(codes)[codes]
    copied = sizes > 1
    sampled = scores.bootstrap_means((plain - honest)[None], codes, seed=data.seed)[0]
    low, high = np.quantile(sampled, [0.025, 0.975])
    gap = {"gain": float((plain - honest).mean()), "low": float(low)}
    return {
        "board_like": likeness.accuracy(plain, codes, seed=data.seed),
        "honest": likeness.accuracy(honest, codes, seed=data.seed),
        "gap": gap | {"high": float(high)},
        "copied": {
            "images": int(copied.sum()),
            "board_like": float(plain[copied].mean()) if copied.any() else None,
            "honest": float(honest[copied].mean()) if copied.any() else None,
        },
        "images": len(labels),
        "folds": data.folds,
        "repeats": data.repeats,
    }


def tell(found: Mapping[str, Any]) -> str:
    """The leakage figure in words, beside any score.

    Args:
        found: of `measure`; `column` names what is kept together beside copies.
    """
    board, honest, gap = found["board_like"], found["honest"], found["gap"]
    column = found.get("column", "")
    kept = f"copies and every `{column}`" if column else "copies"
    plain = "they" if column else "copies"
    words = f"{plain} flatter it" if gap["low"] > 0 else "no flattering is proven"
    return (
        f"Honest and board-like: a linear probe names {honest['accuracy']:.1%} "
        f"({honest['low']:.1%} – {honest['high']:.1%}) on folds that keep {kept} "
        f"together and **{board['accuracy']:.1%}** ({board['low']:.1%} – "
        f"{board['high']:.1%}) on plain folds, where {plain} sit on both sides as they "
        f"do across train and test; {words}: {100 * gap['gain']:+.1f} points "
        f"({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})."
        f"{'' if column else _tell_copied(found)}"
    )


def _tell_copied(found: Mapping[str, Any]) -> str:
    copied = found["copied"]
    if not copied["images"]:
        return ""
    return (
        f" On the {copied['images']:,} drawings with a copy among the training ones it "
        f"is {copied['honest']:.1%} against {copied['board_like']:.1%}."
    )


# --- contradictory labels -----------------------------------------------------------


def make_targets(
    labels: np.ndarray, sets: np.ndarray, policy: str
) -> tuple[np.ndarray, np.ndarray]:
    """`conflicts.teach` as soft targets, which a ridge regression takes at once.

    Args:
        labels: (N,) class numbers.
        sets: (N,) number of the contradictory set each row belongs to, -1 for none.
        policy: one of `conflicts.POLICIES`.
    Returns:
        (N, K) float32 targets whose rows sum to 1, zeros where nothing is taught;
        (N,) float32 weights.
    Raises:
        ValueError: an unknown policy.
    """
    rows, taught, shares = conflicts.teach(labels, sets, policy)
    targets = np.zeros((len(labels), int(labels.max()) + 1), np.float32)
    np.add.at(targets, (rows, taught), shares)
    weights = targets.sum(axis=1)
    return targets / np.maximum(weights, 1e-9)[:, None], weights


def compare_policies(data: Data, found: pd.DataFrame) -> pd.DataFrame:
    """Each way of treating contradictory labels, measured on the same honest folds.

    Scored on the rows without a contradiction: on the others the truth itself is in
    doubt.

    Args:
        data: see there.
        found: of `groups.label_conflicts`.
    Returns:
        One row per policy, only `keep` where nothing contradicts: `policy, trained`
        (pictures), `accuracy, low, high` (95 %), `gain, gain_low, gain_high` against
        `keep`.
    """
    sets = conflicts.number_sets(data.table["image_id"], found)
    labels, codes = data.labels, data.codes
    clean = sets < 0
    right = {}
    trained = {}
    for policy in conflicts.POLICIES if not clean.all() else conflicts.POLICIES[:1]:
        targets, weights = make_targets(labels, sets, policy)
        hits = np.zeros(len(labels))
        for repeat in range(data.repeats):
            fold = data.make_folds(data.groups, repeat)
            hits += likeness.probe(data.seen, targets, fold, weights) == labels
        right[policy] = hits[clean] / data.repeats
        trained[policy] = round(float(weights.sum()))  # sets weigh whole pictures
    codes = np.unique(codes[clean], return_inverse=True)[1]
    rows = []
    for policy in right:
        change = (right[policy] - right["keep"])[None]
        sampled = scores.bootstrap_means(change, codes, seed=data.seed)[0]
        low, high = np.quantile(sampled, [0.025, 0.975])
        score = likeness.accuracy(right[policy], codes, seed=data.seed)
        gain = {"gain": float(change.mean()), "gain_low": low, "gain_high": high}
        rows.append({"policy": policy, "trained": trained[policy], **score, **gain})
    return pd.DataFrame(rows)
