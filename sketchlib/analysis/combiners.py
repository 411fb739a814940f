"""Ways to combine runs that are fitted: what they learn, and how it is applied.

Greedy selection with replacement is Caruana et al. 2004; non-negative shares are the
likeliest mixture, by expectation maximisation (Dempster et al. 1977), for all classes
or each class with a prior towards equal shares; stacking is Wolpert 1992 as a
conditional logit over log-probabilities, ridge-regularised towards the plain
geometric mean, one coefficient a run, so that 500 classes need no more rows than 5.
Limits: fitted on the few classes that some member finds likely, applied to all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, sparse, special

from sketchlib.training.predictions import Predictions

TINY = 1e-12  # probabilities below this count as this when logarithms are taken
_RIVALS = 10  # classes beside the true one that a fit looks at
_FIT_ROWS = 3000  # pictures a temperature is fitted on; one number needs no more
_TEMPERATURES = np.geomspace(0.25, 4.0, 33)
_PRIOR_IMAGES = 20.0  # pictures' worth of equal shares in front of each class
_RIDGE = 0.01  # pull of the stacking coefficients to equal ones, per squared unit


@dataclass(frozen=True)
class Rows:
    """What a fit needs of M runs and N labelled pictures.

    Attributes:
        probs: (M, C, N) float32, the true class's probability first, then its rivals'.
        truth: (N,) index of the true class.
        classes: K.
        losses: (M, P, T) summed log loss of each run in each part at each temperature.
        parts: (N,) which part a picture is held out in, 0..P-1.
    """

    probs: np.ndarray
    truth: np.ndarray
    classes: int
    losses: np.ndarray
    parts: np.ndarray


@dataclass(frozen=True)
class Rule:
    """A fitted combination of M runs.

    Attributes:
        weights: (M,), or (M, K) where each class has its own; ≥ 0 unless `stacked`.
        temperatures: (M,) what the logits are divided by first.
        stacked: weights multiply log-probabilities instead of probabilities.
        path: members in the order a greedy search added them; else empty.
    """

    weights: np.ndarray
    temperatures: np.ndarray
    stacked: bool = False
    path: tuple[int, ...] = ()


def as_probs(logits: np.ndarray) -> np.ndarray:
    """(N, K) float32 softmax, one pass, for blends of many runs."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float32)
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def as_logs(probs: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, with a floor."""
    return np.log(np.maximum(probs, np.float32(TINY)))


def gather(
    runs: Mapping[str, Predictions], truth: np.ndarray, parts: np.ndarray
) -> Rows:
    """The rows a fit looks at: 40 runs × 15,000 pictures are 26 MB instead of 1.2 GB.

    Only the classes that some member finds likely can win a weighted mean.

    Args:
        runs: aligned, columns in the manifest's class order.
        truth: (N,) index of the true class.
        parts: (N,) numbers 0..P-1.
    """
    first = next(iter(runs.values()))
    likely: np.ndarray = np.zeros(first.logits.shape, np.float32)
    for run in runs.values():
        np.maximum(likely, as_probs(run.logits), out=likely)
    own = truth[:, None]  # (N, 1)
    np.put_along_axis(likely, own, -1.0, axis=1)  # a class is not its own rival
    count = min(_RIVALS, likely.shape[1] - 1)
    rivals = np.argpartition(-likely, count - 1, axis=1)[:, :count]  # (N, C-1)
    columns = np.concatenate([own, rivals], axis=1)
    picked = np.empty((len(runs), count + 1, len(columns)), np.float32)
    losses = []
    some = np.random.default_rng(0).permutation(len(truth))[:_FIT_ROWS]
    for member, run in enumerate(runs.values()):
        probs = as_probs(run.logits)
        picked[member] = np.take_along_axis(probs, columns, axis=1).T
        losses.append(_try_temperatures(as_logs(probs[some]), truth[some], parts[some]))
    width = max(len(one) for one in losses)
    padded = [np.pad(one, ((0, width - len(one)), (0, 0))) for one in losses]
    return Rows(picked, truth, likely.shape[1], np.stack(padded), parts)


def _try_temperatures(
    logs: np.ndarray, truth: np.ndarray, parts: np.ndarray
) -> np.ndarray:
    """(P, T) summed log loss of one run in each part at each temperature."""
    own = logs[np.arange(len(truth)), truth]
    tried = []
    for temperature in _TEMPERATURES.astype(np.float32):
        total = np.log(np.exp(logs / temperature).sum(axis=1))  # logs are ≤ 0
        tried.append(np.bincount(parts, total - own / temperature))
    return np.array(tried).T


# --- fits: rows and a mask of those to learn from → a rule --------------------------


def fit_tempered(rows: Rows, where: np.ndarray) -> Rule:
    """Equal weights after each run's own temperature, the one of least log loss."""
    known = np.unique(rows.parts[where])
    loss = rows.losses[:, known[known < rows.losses.shape[1]]].sum(axis=1)  # (M, T)
    return Rule(_equal(rows), _TEMPERATURES[loss.argmin(axis=1)])


def fit_shares(rows: Rows, where: np.ndarray) -> Rule:
    """Non-negative weights, sum 1, that make the mixture's log loss least."""
    own = rows.probs[:, 0, where]
    shares = _mix(own, np.zeros(own.shape[1], np.int64), 1, 0.0)
    return Rule(shares[:, 0], np.ones(len(shares)))


def fit_class_shares(rows: Rows, where: np.ndarray) -> Rule:
    """The same for each class, held to equal shares by twenty pictures' worth."""
    own, truth = rows.probs[:, 0, where], rows.truth[where]
    shares = _mix(own, truth, rows.classes, _PRIOR_IMAGES)
    return Rule(shares, np.ones(len(shares)))


def _mix(own: np.ndarray, codes: np.ndarray, classes: int, prior: float) -> np.ndarray:
    """(M, K) shares of each run in the likeliest mixture for each code."""
    members, count = own.shape
    belongs = sparse.csr_array(
        (np.ones(count, np.float32), (np.arange(count), codes)), shape=(count, classes)
    )
    shares = np.full((members, classes), 1 / members, np.float32)
    floored = np.maximum(own, np.float32(TINY))
    for _ in range(60):  # its early steps do the most, and stopping is a prior too
        blame = shares[:, codes] * floored
        blame /= blame.sum(axis=0)
        mass = (belongs.T @ blame.T).T + (prior + 1e-6) / members
        shares = (mass / mass.sum(axis=0)).astype(np.float32)
    return shares


def fit_greedy(rows: Rows, where: np.ndarray, steps: int = 50) -> Rule:
    """Members added one by one, the same one possibly often, best accuracy first."""
    path = select_greedily(np.ascontiguousarray(rows.probs[:, :, where]), steps)
    counts = np.bincount(path, minlength=len(rows.probs)) / len(path)
    return Rule(counts, np.ones(len(counts)), path=tuple(path))


def select_greedily(probs: np.ndarray, steps: int) -> list[int]:
    """Members (of M, C, N) in the order they are added, cut at the best score reached.

    Log loss decides between equal numbers of hits.
    """
    total = np.zeros_like(probs[0])  # (C, N)
    sums = np.empty_like(total)
    chosen, reached = [], []
    for step in range(1, steps + 1):
        merits = []
        for member in probs:  # one member at a time stays in the processor's cache
            np.add(total, member, out=sums)
            merits.append(_merit(sums, step))
        best = int(np.argmax(merits))
        chosen.append(best)
        reached.append(merits[best])
        total += probs[best]
    return chosen[: int(np.argmax(reached)) + 1]


def _merit(sums: np.ndarray, members: int) -> float:
    hits, loss = score_sums(sums, members)
    return hits - loss / 1e3  # loss is at most 28, a hit is worth more


def score_sums(sums: np.ndarray, members: int) -> tuple[int, float]:
    """Hits (pictures) and log loss (nats) of sums (C, N) over `members`."""
    hits = int(np.count_nonzero(sums[0] > sums[1:].max(axis=0)))
    return hits, float(-np.log(np.maximum(sums[0] / members, TINY)).mean())


def fit_stack(rows: Rows, where: np.ndarray) -> Rule:
    """Coefficients of log-probabilities, free in sign and sum, held by a ridge."""
    logs = as_logs(rows.probs[:, :, where])  # (M, C, n)
    flat = logs.reshape(len(logs), -1)
    start = _equal(rows)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = (weights.astype(np.float32) @ flat).reshape(logs.shape[1:])  # (C, n)
        norm = special.logsumexp(scores, axis=0)
        pull = np.exp(scores - norm)
        pull[0] -= 1
        away = weights - start
        gradient = flat @ pull.ravel() / scores.shape[1] + 2 * _RIDGE * away
        value = float((norm - scores[0]).mean() + _RIDGE * away @ away)
        return value, gradient.astype(np.float64)

    found = optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 60}
    )
    return Rule(found.x, np.ones(len(start)), stacked=True)


def fit_budget(
    rows: Rows, where: np.ndarray, seconds: np.ndarray, budget: float
) -> Rule:
    """Equal weights of the members that together take at most `budget` seconds.

    Members are added while they raise accuracy, log loss deciding between equals.

    Raises:
        ValueError: no run alone fits the budget.
    """
    probs = np.ascontiguousarray(rows.probs[:, :, where])
    if not (seconds <= budget).any():
        raise ValueError(
            f"at least one run should fit {budget:g} seconds, but the fastest takes "
            f"{seconds.min():g}; allow more"
        )
    chosen: list[int] = []
    total, reached = np.zeros_like(probs[0]), -np.inf
    while True:
        left = budget - seconds[chosen].sum()
        rest = [m for m in range(len(probs)) if m not in chosen and seconds[m] <= left]
        merits = [_merit(total + probs[m], len(chosen) + 1) for m in rest]
        if not rest or max(merits) <= reached:
            break
        reached = max(merits)
        chosen.append(rest[int(np.argmax(merits))])
        total += probs[chosen[-1]]
    weights = np.zeros(len(probs))
    weights[chosen] = 1 / len(chosen)
    return Rule(weights, np.ones(len(probs)), path=tuple(chosen))


def _equal(rows: Rows) -> np.ndarray:
    return np.full(len(rows.probs), 1 / len(rows.probs))


FITS: dict[str, Callable[[Rows, np.ndarray], Rule]] = {
    "tempered": fit_tempered,
    "weights": fit_shares,
    "greedy": fit_greedy,
    "per_class": fit_class_shares,
    "stack": fit_stack,
}


# --- applying ---------------------------------------------------------------


def apply_rules(
    runs: Mapping[str, Predictions],
    rules: Mapping[str, list[Rule]],
    parts: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """(N, K) float32 probabilities of each rule, in one pass over the runs.

    Args:
        runs: aligned, columns in the order the rules were fitted in.
        rules: by name, one rule per part; a single one is for all rows.
        parts: (N,) which rule a row goes by; None: the first.
    """
    first = next(iter(runs.values()))
    rows = np.zeros(len(first.logits), np.int64) if parts is None else parts
    sums = {name: np.zeros(first.logits.shape, np.float32) for name in rules}
    for member, run in enumerate(runs.values()):
        probs = as_probs(run.logits)
        logs = None
        for name, per_part in rules.items():
            warm = np.array([rule.temperatures[member] for rule in per_part])
            share = np.stack([rule.weights[member] for rule in per_part])
            if not share.any():
                continue
            weight = share.astype(np.float32)[rows]  # (N,) or (N, K)
            weight = weight[:, None] if weight.ndim == 1 else weight
            if per_part[0].stacked:
                logs = as_logs(probs) if logs is None else logs
                sums[name] += weight * logs
            elif (warm != 1).any():
                logits = run.logits / warm.astype(np.float32)[rows][:, None]
                sums[name] += weight * as_probs(logits)
            else:
                sums[name] += weight * probs
    for name, per_part in rules.items():
        if per_part[0].stacked:
            sums[name] = as_probs(sums[name])
        sums[name] /= sums[name].sum(axis=1, keepdims=True)
    return sums


def as_path(path: tuple[int, ...], rows: Rows, names: list[str]) -> pd.DataFrame:
    """One row per greedy step: step, added, accuracy (0-1), log_loss, on the rows
    it was fitted on.
    """
    total = np.zeros_like(rows.probs[0])
    steps = []
    for step, member in enumerate(path, 1):
        total += rows.probs[member]
        hits, loss = score_sums(total, step)
        steps.append((step, names[member], hits / total.shape[1], loss))
    return pd.DataFrame(steps, columns=["step", "added", "accuracy", "log_loss"])
