"""Ensemble search: seconds and memory of every combination, and of greedy selection.

Run: python benchmarks/ensemble.py [--runs M] [--pictures N] [--classes K] [--steps S]
Runs are drawn: a shared difficulty of each picture and class, a skill and a taste of
each run, so that they err together as real ones do. Rows:
  all methods  `search.search_methods`: five fits, each nested over five folds, four
               plain votes, scores, intervals and verdicts
  greedy       one fit of the greedy selection on all rows, from gathered rows
  plain NumPy  the same selection written over all classes, float32, in place
  AutoGluon-style  the same over all classes with scikit-learn's accuracy for each
               candidate and a fresh mean, as AutoGluon's EnsembleSelection does
The two peers take steps of one length, so they are timed over `--peer-steps` and
multiplied. Their choices over those steps must be the same as ours (log loss decides
ties here, so the hits are compared). Seconds of the clock and of the processor are
both printed: on a busy machine only the latter says much.
"""

import argparse
import contextlib
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score
from table import limit_row, ratio_row, write_rows

from sketchlib.analysis import combiners, joining, search
from sketchlib.training.predictions import Predictions


def make_runs(
    members: int, pictures: int, classes: int
) -> tuple[dict[str, Predictions], pd.DataFrame]:
    """Drawn out-of-fold runs and the manifest of their pictures."""
    rng = np.random.default_rng(0)
    truth = np.sort(rng.integers(0, classes, pictures))
    truth[:classes] = np.arange(classes)
    names = np.array([f"n{number:08d}" for number in range(classes)])
    ids = np.array([f"train/{number:06d}.JPEG" for number in range(pictures)])
    columns = {"image_id": ids, "path": ids, "label": truth, "class_name": names[truth]}
    manifest = pd.DataFrame(columns).assign(subset="train")
    manifest.attrs["classes"] = list(names)
    shared = rng.standard_normal((pictures, classes), dtype=np.float32)
    ease = rng.normal(4.0, 1.5, pictures).astype(np.float32)
    fold = rng.permutation(pictures) % 5
    runs = {}
    for number in range(members):
        logits = rng.standard_normal((pictures, classes), dtype=np.float32)
        logits += shared
        skill = np.float32(rng.uniform(0.8, 1.1))
        logits[np.arange(pictures), truth] += skill * ease
        runs[f"run {number:02d}"] = Predictions(ids, names, logits, fold)
    return runs, manifest


def select_plainly(probs: list[np.ndarray], truth: np.ndarray, steps: int) -> list[int]:
    """Greedy selection over all classes, as one would write it with NumPy."""
    total, chosen = np.zeros_like(probs[0]), []
    sums = np.empty_like(total)
    for _ in range(steps):
        hits = []
        for one in probs:
            np.add(total, one, out=sums)
            hits.append(int((sums.argmax(axis=1) == truth).sum()))
        chosen.append(int(np.argmax(hits)))
        total += probs[chosen[-1]]
    return chosen


def select_as_autogluon(
    probs: list[np.ndarray], truth: np.ndarray, steps: int
) -> list[int]:
    """Greedy selection with a fresh mean and a metric call for each candidate."""
    total, chosen = np.zeros_like(probs[0]), []
    for step in range(1, steps + 1):
        merits = [
            accuracy_score(truth, ((total + one) / step).argmax(axis=1))
            for one in probs
        ]
        chosen.append(int(np.argmax(merits)))
        total = total + probs[chosen[-1]]
    return chosen


def measure(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, seconds of the clock, seconds of the processor)."""
    clock, processor = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - clock, time.process_time() - processor


def count_hits(probs: list[np.ndarray], truth: np.ndarray, chosen: list[int]) -> int:
    total = np.sum([probs[member] for member in chosen], axis=0)
    return int((total.argmax(axis=1) == truth).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--pictures", type=int, default=15000)
    parser.add_argument("--classes", type=int, default=500)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--peer-steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    runs, manifest = make_runs(asked.runs, asked.pictures, asked.classes)
    limits = search.Limits(steps=asked.steps)
    rows, peaks = [], []
    for _ in range(asked.rounds):
        forget_peak()
        found, clock, processor = measure(
            lambda: search.search_methods(runs, manifest, limits=limits)
        )
        rows.append(("all methods", clock, processor))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        rows += time_greedy(asked, runs, manifest)
    listed = pd.DataFrame(rows, columns=["what", "seconds", "processor_seconds"])
    write(asked, listed, peaks)
    print(
        f"{asked.runs} runs x {asked.pictures:,} pictures x {asked.classes} classes, "
        f"{asked.steps} steps, 5 folds"
    )
    print(listed.groupby("what", sort=False).median().round(2))
    kept = ["name", "kind", "accuracy", "gain", "gain_low", "gain_high", "verdict"]
    best = found.table[found.table["kind"] != "run"]
    print(best[kept].round(4).to_string(index=False))
    print(f"recommended: {found.recommended}")


def forget_peak() -> None:
    """Let the peak memory of this process count from now, where Linux can do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def time_greedy(
    asked: argparse.Namespace, runs: dict[str, Predictions], manifest: pd.DataFrame
) -> list[tuple[str, float, float]]:
    """(what, seconds, processor seconds) of greedy selection, ours and the peers'."""
    rows = []
    first = next(iter(runs.values()))
    truth = joining.find_truth(first, manifest)
    gathered, clock, processor = measure(
        lambda: combiners.gather(runs, truth, search.outer_parts(first, None))
    )
    rows.append(("gathering rows", clock, processor))
    ours, clock, processor = measure(
        lambda: combiners.select_greedily(gathered.probs, asked.steps)
    )
    rows.append(("greedy", clock, processor))
    probs = [combiners.as_probs(run.logits) for run in runs.values()]
    for name, select in (
        ("plain NumPy", select_plainly),
        ("AutoGluon-style", select_as_autogluon),
    ):
        peer, clock, processor = measure(
            partial(select, probs, truth, asked.peer_steps)
        )
        scale = asked.steps / asked.peer_steps
        rows.append((f"{name}, to scale", scale * clock, scale * processor))
        same = (
            count_hits(probs, truth, peer),
            count_hits(probs, truth, ours[: len(peer)]),
        )
        print(f"{name}: {same[0]:,} hits after {len(peer)} steps, ours {same[1]:,}")
    return rows


def write(asked: argparse.Namespace, listed: pd.DataFrame, peaks: list[float]) -> None:
    """Lines of the common table; goals hold at the full size only."""
    spent = {
        name: own["seconds"].to_numpy()
        for name, own in listed.groupby("what", sort=False)
    }
    size = f"{asked.runs} runs x {asked.pictures:,} x {asked.classes}"
    whole = (asked.runs, asked.pictures, asked.classes) == (40, 15000, 500)
    goals = [
        ("all methods", spent["all methods"], 60.0, "s"),
        ("greedy", spent["gathering rows"] + spent["greedy"], 10.0, "s"),
        ("peak memory", peaks, 4.0, "GB"),
    ]
    lines = [
        limit_row(
            f"f. ensemble search, {size}: {name}",
            list(values),
            unit,
            goal if whole else None,
            told=max if unit == "GB" else median,
        )
        for name, values, goal, unit in goals
    ]
    lines += [
        ratio_row(
            f"f. greedy, 1 / seconds / {name}",
            list(zip(1 / spent["greedy"], 1 / values, strict=True)),
            0.0,
            "1/s",
        )
        for name, values in spent.items()
        if name.endswith("to scale")
    ]
    write_rows("ensemble", lines)


if __name__ == "__main__":
    main()
