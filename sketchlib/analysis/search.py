"""Which combination to use: all of them side by side, on rows they were not fitted on.

Plain soft voting is the default: on the competition's boards every fitted combiner
lost to it, because it was fitted on the wrong rows. Here what is fitted is fitted on
the other folds of each row, and recommended only where it beats the plain vote with
an interval and a test that knows how many were tried. Limits: all runs' logits are
held in memory, float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold

from sketchlib.analysis import combiners, ensemble, joining, scores
from sketchlib.analysis.combiners import Rows, Rule
from sketchlib.data import manifest as manifests
from sketchlib.training.predictions import Predictions

Fit = Callable[[Rows, np.ndarray], Rule]
NAMES = {
    "soft": "soft vote",
    "hard": "hard vote",
    "geometric": "geometric mean",
    "rank": "mean of ranks",
    "tempered": "soft vote, temperature first",
    "weights": "fitted weights",
    "greedy": "greedy weights",
    "per_class": "weights per class",
    "stack": "stacking",
    "budget": "within the time budget",
}


@dataclass(frozen=True)
class Search:
    """Every combination of the same runs, and which one to use.

    Attributes:
        table: method, name, kind (`run`, `plain`, `fitted`), accuracy, low, high (95 %
            bootstrap by groups), log_loss, gain, gain_low, gain_high, p_value, verdict
            (against the soft vote, paired; `reference` for that one), recommended.
            Fitted ones are scored on rows they were not fitted on.
        recommended: method, `soft` unless another is better beyond doubt.
        oof: out-of-fold predictions by method; score these, not a blend by weights
            that have seen the labels.
        rules: by fitted method, fitted on all rows; for the test pictures.
        path: step, added (run), accuracy, log_loss of the greedy search on all rows,
            the rows it was fitted on.
        names: the runs, in the order of the rules' weights.
        classes: K names, in the order of weights per class.
    """

    table: pd.DataFrame
    recommended: str
    oof: dict[str, Predictions]
    rules: dict[str, Rule]
    path: pd.DataFrame
    names: list[str]
    classes: list[str]

    @property
    def verdict(self) -> str:
        """The best contender against the soft vote, in words."""
        tried = self.table[self.table["kind"] != "run"].set_index("method")
        others = tried.drop(index="soft")
        best = others.loc[others["accuracy"].idxmax()]
        return (
            f"{best['name']} against the plain soft vote: {best['verdict']}, "
            f"{100 * best['gain']:+.1f} points (95 % {100 * best['gain_low']:+.1f} to "
            f"{100 * best['gain_high']:+.1f}, p = {best['p_value']:.2g}, "
            f"{len(others)} combinations tried)"
        )

    def weights(self, method: str) -> dict[str, float]:
        """Share of each run, sum 1: fitted ones, a mean over classes, or equal ones."""
        if method not in self.rules:
            return dict.fromkeys(self.names, 1 / len(self.names))
        values = self.rules[method].weights
        values = values.mean(axis=1) if values.ndim == 2 else values
        shares = (values / values.sum()).tolist()
        return dict(zip(self.names, shares, strict=True))

    def predict(self, method: str, runs: dict[str, Predictions]) -> Predictions:
        """The same combination of other pictures, such as the test set.

        Raises:
            ValueError: an unknown method, or other runs than were searched.
        """
        if set(runs) != set(self.names):
            raise ValueError(
                f"the runs searched were {self.names}, but {list(runs)} came; read "
                "`test.npz` of the same runs"
            )
        ordered = {name: runs[name] for name in self.names}
        if method not in self.rules:
            return ensemble.blend(ordered, how=ensemble.check_how(method))
        aligned = _in_classes(ordered, self.classes)
        found = combiners.apply_rules(aligned, {method: [self.rules[method]]})
        first = next(iter(aligned.values()))
        return ensemble.settle(first, found[method], [first])


@dataclass(frozen=True)
class Limits:
    """What a search may use.

    Attributes:
        steps: members a greedy search adds, the same one possibly often.
        seconds: what each run costs to predict with; empty without a budget.
        budget: seconds all members together may take; 0 without a budget.
    """

    steps: int = 50
    seconds: Mapping[str, float] = field(default_factory=dict)
    budget: float = 0.0


def search_methods(
    runs: dict[str, Predictions],
    manifest: pd.DataFrame,
    groups: pd.DataFrame | None = None,
    *,
    limits: Limits | None = None,
    seed: int = 0,
) -> Search:
    """Every combination of the runs, each judged on rows it was not fitted on.

    Args:
        runs: out-of-fold predictions by run name.
        manifest: every predicted image must have a label in it.
        groups: `image_id, group`; groups are drawn and split whole.
        limits: greedy steps and a time budget.
        seed: of the bootstrap.
    Raises:
        ValueError: runs that do not join, or pictures that are one single group.
    """
    classes = manifests.class_names(manifest)
    kept = {name: joining.without_dropped(run, manifest) for name, run in runs.items()}
    aligned = _in_classes(kept, classes)
    first = next(iter(aligned.values()))
    truth = joining.find_truth(first, manifest)
    parts = outer_parts(first, groups)
    rows = combiners.gather(aligned, truth, parts)
    fits = _make_fits(limits or Limits(), list(aligned))
    everything = np.ones(len(truth), bool)
    rules = {name: fit(rows, everything) for name, fit in fits.items()}
    nested = {
        name: [fit(rows, parts != part) for part in range(parts.max() + 1)]
        for name, fit in fits.items()
    }
    oof = ensemble.blend_plain(aligned)
    for name, probs in combiners.apply_rules(aligned, nested, parts).items():
        oof[name] = ensemble.settle(first, probs, [first])
    table = _score_contenders(aligned, oof, truth, (groups, seed))
    recommended = _recommend(table)
    return Search(
        table=table.assign(recommended=table["method"] == recommended),
        recommended=recommended,
        oof=oof,
        rules=rules,
        path=combiners.as_path(rules["greedy"].path, rows, list(aligned)),
        names=list(aligned),
        classes=classes,
    )


def _in_classes(
    runs: dict[str, Predictions], classes: list[str]
) -> dict[str, Predictions]:
    return {
        name: joining.align_classes(run, classes)
        for name, run in ensemble.align(runs).items()
    }


def _make_fits(limits: Limits, names: list[str]) -> dict[str, Fit]:
    """The fits by name, with the greedy one's steps and the budget filled in."""
    fits: dict[str, Fit] = dict(combiners.FITS)
    fits["greedy"] = lambda rows, where: combiners.fit_greedy(rows, where, limits.steps)
    if limits.budget > 0:
        missing = [name for name in names if name not in limits.seconds]
        if missing:
            raise ValueError(
                f"a time budget needs the seconds of every run, but {missing} have "
                "none; set the budget to 0"
            )
        costs = np.array([limits.seconds[name] for name in names])
        fits["budget"] = lambda rows, where: combiners.fit_budget(
            rows, where, costs, limits.budget
        )
    return fits


def _score_contenders(
    runs: dict[str, Predictions],
    oof: dict[str, Predictions],
    truth: np.ndarray,
    resampling: tuple[pd.DataFrame | None, int],
) -> pd.DataFrame:
    """One row per run and combination; all are judged on the same drawn groups."""
    groups, seed = resampling
    contenders = [*runs.values(), *oof.values()]
    codes = scores.group_codes(contenders[0].image_ids, groups)
    right = np.array([one.labels == truth for one in contenders])
    sampled = scores.bootstrap_means(right, codes, seed=seed)
    lows, highs = np.quantile(sampled, [0.025, 0.975], axis=1)
    reference = right[len(runs) + list(oof).index("soft")]
    gains = scores.paired_gains(reference, right, codes, seed=seed)
    kinds = ["plain" if name in ensemble.METHODS else "fitted" for name in oof]
    table = pd.DataFrame(
        {
            "method": [""] * len(runs) + list(oof),
            "name": [*runs, *(NAMES[name] for name in oof)],
            "kind": ["run"] * len(runs) + kinds,
            "accuracy": right.mean(axis=1),
            "low": lows,
            "high": highs,
            "log_loss": [_log_loss(one, truth) for one in contenders],
            "gain": gains["gain"],
            "gain_low": gains["low"],
            "gain_high": gains["high"],
            "p_value": gains["p_value"],
            "verdict": gains["verdict"],
        }
    )
    table.loc[table["method"] == "soft", "verdict"] = "reference"
    return table


def _recommend(table: pd.DataFrame) -> str:
    """The plain soft vote, unless another is better whichever of them was tried."""
    others = table[(table["kind"] != "run") & (table["method"] != "soft")]
    # Bonferroni: the best of eight tries looks good by chance alone.
    sure = others[
        (others["verdict"] == "better") & (others["p_value"] * len(others) < 0.05)
    ]
    if sure.empty:
        return "soft"
    return str(sure.loc[sure["accuracy"].idxmax(), "method"])


def _log_loss(run: Predictions, truth: np.ndarray) -> float:
    """Mean of −log probability of the true class, nats."""
    logits = run.logits - run.logits.max(axis=1, keepdims=True)
    own = logits[np.arange(len(truth)), truth]
    return float((np.log(np.exp(logits).sum(axis=1)) - own).mean(dtype=np.float64))


def outer_parts(first: Predictions, groups: pd.DataFrame | None) -> np.ndarray:
    """(N,) numbers 0..P-1: the training folds, or five parts of whole groups.

    Raises:
        ValueError: all pictures are one group, so nothing can be held out.
    """
    folds, numbers = np.unique(first.fold, return_inverse=True)
    if len(folds) > 1:
        return numbers
    codes = scores.group_codes(first.image_ids, groups)
    parts = min(5, int(codes.max()) + 1)
    if parts < 2:
        raise ValueError(
            "weights should be fitted on other pictures than they are scored on, but "
            f"all {len(codes)} pictures are one group; use the plain soft vote"
        )
    splitter = GroupKFold(n_splits=parts, shuffle=True, random_state=0)
    held = np.empty(len(codes), np.int64)
    for part, (_, rows) in enumerate(splitter.split(codes, groups=codes)):
        held[rows] = part
    return held
