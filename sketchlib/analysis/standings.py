"""What a race says: gain over the baseline, its interval, a verdict.

Every setting met the same pictures with the same seeds, so the difference of hits is
taken picture by picture. Two things vary: the pictures (copies of one drawing vary
together) and the seeds (a seed moves all its pictures together). The variance of the
mean is the one between groups of copies plus what the seeds add to it, after Cameron,
Gelbach & Miller (2011), with Student's t by Satterthwaite's degrees of freedom.
Limits: three seeds say little of how seeds vary; each interval stands for itself, and
of twenty settings one will look better by luck.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from scipy import stats

BASELINE = "none"
MOST_SEEDS = 50  # beyond this, "more seeds" is no advice


@dataclass(frozen=True)
class Gain:
    """A mean difference with its parts of variance.

    Attributes:
        mean: -1 to 1.
        pictures: variance of the mean from the choice of pictures.
        seeds: what the seeds add to it.
        groups: groups of copies seen.
        runs: seeds seen.
    """

    mean: float
    pictures: float
    seeds: float
    groups: int
    runs: int

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval."""
        return _half(self.pictures, self.seeds, self.groups, self.runs)


def _half(pictures: float, seeds: float, groups: int, runs: int) -> float:
    total = pictures + seeds
    if total <= 0 or groups < 2:
        return 0.0 if groups >= 2 else np.inf
    spread = pictures**2 / (groups - 1) + seeds**2 / max(runs - 1, 1)
    return float(stats.t.ppf(0.975, total**2 / spread) * np.sqrt(total))


def measure_gain(ours: pd.DataFrame, theirs: pd.DataFrame, groups: pd.Series) -> Gain:
    """Gain of `ours` over `theirs` on the heats and pictures that both have run.

    Args:
        ours: rows of `race.run_heat` of one setting.
        theirs: likewise, of another.
        groups: group of copies by image_id.
    """
    keys = ["seed", "fold", "image_id"]
    both = ours.merge(theirs, on=keys, suffixes=("", "_other"))
    gain = both["hit"].astype(float) - both["hit_other"].astype(float)
    rest = gain - gain.mean()
    known = groups.to_dict()
    group = both["image_id"].map(lambda name: known.get(name, name))
    by_group = _variance(rest, [group])
    by_seed = _variance(rest, [both["seed"]])
    by_both = _variance(rest, [group, both["seed"]])
    return Gain(
        float(gain.mean()),
        by_group,
        max(0.0, by_seed - by_both) if both["seed"].nunique() > 1 else 0.0,
        group.nunique(),
        both["seed"].nunique(),
    )


def _variance(rest: pd.Series, clusters: list[pd.Series]) -> float:
    """Variance of the mean when what is in one cluster varies together."""
    sums = rest.groupby([cluster.to_numpy() for cluster in clusters]).sum()
    count = len(sums)
    if count < 2:
        return 0.0
    return float((sums**2).sum() / len(rest) ** 2 * count / (count - 1))


def count_more_seeds(gain: Gain, folds: int) -> int:
    """Seeds to add until the gain, if it stays as it is, is clear of 0; -1: too many.

    Args:
        gain: so far.
        folds: in how many seeds every fold has been held out once; until then a seed
            brings new pictures, afterwards only itself.
    """
    for runs in range(gain.runs, MOST_SEEDS + 1):
        seen = min(runs, folds) / max(1, min(gain.runs, folds))
        half = _half(
            gain.pictures / seen,
            gain.seeds * gain.runs / runs,
            round(gain.groups * seen),
            runs,
        )
        if half < abs(gain.mean):
            return runs - gain.runs
    return -1


def rank_settings(
    heats: pd.DataFrame, groups: pd.Series, *, folds: int, baseline: str = BASELINE
) -> pd.DataFrame:
    """One row per setting, best first.

    Args:
        heats: all rows of `race.run_heat`.
        groups: group of copies by image_id.
        folds: seeds in which every fold has been held out once.
        baseline: setting the others are measured against.
    Returns:
        name, accuracy (0-1), gain, low, high (of accuracy over the baseline), seconds
        (median of an epoch), seeds, verdict, more_seeds (0 when told, -1 when out of
        reach).
    """
    theirs = heats[heats["setting"] == baseline]
    if not len(theirs):
        raise ValueError(
            f"the race needs its baseline {baseline!r} among the settings, but there "
            f"are {sorted(heats['setting'].unique())}; add it to `settings`"
        )
    rows = []
    for name, ours in heats.groupby("setting", sort=False):
        gain = measure_gain(ours, theirs, groups)
        low, high = gain.mean - gain.half, gain.mean + gain.half
        verdict = "better" if low > 0 else "worse" if high < 0 else "cannot tell yet"
        verdict = "baseline" if name == baseline else verdict
        told = verdict != "cannot tell yet"
        rows.append(
            {
                "name": name,
                "accuracy": ours["hit"].mean(),
                "gain": gain.mean,
                "low": low,
                "high": high,
                "seconds": ours["seconds"].median(),
                "seeds": ours["seed"].nunique(),
                "verdict": verdict,
                "more_seeds": 0 if told else count_more_seeds(gain, folds),
            }
        )
    return pd.DataFrame(rows).sort_values("gain", ascending=False, ignore_index=True)


def still_running(
    heats: pd.DataFrame, names: Sequence[str], groups: pd.Series, *, after: int
) -> list[str]:
    """Settings that may still win: those not clearly behind the leader.

    Args:
        heats: what has been run so far; may be empty.
        names: all settings, in the order they run.
        groups: group of copies by image_id.
        after: seeds before anything is stopped.
    """
    if not len(heats) or heats["seed"].nunique() < after:
        return list(names)
    scores = {
        name: measure_gain(ours, heats[heats["setting"] == BASELINE], groups).mean
        for name, ours in heats.groupby("setting")
    }
    leader = heats[heats["setting"] == max(scores, key=lambda name: scores[name])]
    kept = []
    for name in names:
        ours = heats[heats["setting"] == name]
        gain = measure_gain(ours, leader, groups)
        if name == BASELINE or not len(ours) or gain.mean + gain.half >= 0:
            kept.append(name)
    return kept


def say_standings(table: pd.DataFrame) -> str:
    """The table in words."""
    best = table.iloc[0]
    text = "No setting is ahead of none: the pictures as they are lead the race."
    if best["verdict"] != "baseline":
        text = _say_leader(best)
    undecided = table[table["verdict"] == "cannot tell yet"]
    reachable = undecided[undecided["more_seeds"] > 0]
    for name, seeds in reachable[["name", "more_seeds"]].itertuples(index=False):
        text += (
            f" Cannot tell yet: {name}; {seeds} more seeds would, if its gain stays."
        )
    rest = undecided.loc[undecided["more_seeds"] < 0, "name"].tolist()
    if rest:
        text += (
            f" Cannot tell yet, and not with {MOST_SEEDS} seeds on these pictures: "
            f"{', '.join(rest)}."
        )
    return text


def style_standings(table: pd.DataFrame) -> Styler:
    """The table of `rank_settings` for a reader: gains in points, no code numbers."""
    advice = {0: "–", -1: f"over {MOST_SEEDS}"}
    points = table.assign(**{c: 100 * table[c] for c in ("gain", "low", "high")})
    names = {"seconds": "s an epoch", "more_seeds": "more seeds to tell"}
    return (
        points.rename(columns=names)
        .style.format(precision=3)
        .format("{:+.1f}", subset=["gain", "low", "high"])
        .format("{:.1f}", subset=["s an epoch"])
        .format(
            lambda seeds: advice.get(seeds, str(seeds)), subset=[names["more_seeds"]]
        )
        .hide()
    )


def _say_leader(best: pd.Series) -> str:
    return (
        f"**{best['name']}** leads: {100 * best['gain']:+.1f} points over none (95 % "
        f"interval {100 * best['low']:+.1f} to {100 * best['high']:+.1f}, "
        f"{best['seeds']} seeds), **{best['verdict']}**."
    )
