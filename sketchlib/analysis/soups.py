"""Models averaged instead of predictions, and views of the test pictures compared.

Model soups (Wortsman et al. 2022): runs of one architecture, trained on the same
folds, are averaged fold by fold; fold k of every run held the same pictures out, so
the soup of a fold is scored on pictures none of its ingredients trained on. Greedy
soups choose ingredients on the other folds of each row. Limits: averages of runs that
started from different weights are usually worthless; the table says so. Folds of one
run cannot be averaged into one model and scored: each saw the others' pictures.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from sketchlib.analysis import ensemble, joining
from sketchlib.analysis.looking import Glass
from sketchlib.data import manifest as manifests
from sketchlib.training import compute, datasets, predictions, trained
from sketchlib.training.predictions import Predictions

PLAIN = compute.Compute("cpu", "fp32", "nchw", 0.0)
VIEWS: dict[str, tuple[str, ...]] = {
    "upright": (),
    "and mirrored": ("hflip",),
    "and upside down": ("vflip",),
    "mirrored and tilted": ("hflip", "tilt"),
}


_TARGETS = ("columns", "targets", "attributes", "superclasses", "superclass_count")


def find_pots(records: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Names of runs that can be averaged: one model, one geometry, two runs at least.

    Args:
        records: `run.json` of each run.
    """
    pots: dict[str, list[str]] = {}
    for name, record in records.items():
        if "network" in record:
            asked = record.get("parameters", {})
            targets = [asked.get(name) for name in _TARGETS]  # what its outputs are
            network = record["network"]
            inputs = [network.get("stats"), record.get("geometry")]
            same = (network["model"], inputs, targets)
            pots.setdefault(repr(same), []).append(name)
    return [names for names in pots.values() if len(names) > 1]


def average_models(parts: Sequence[nn.Module]) -> nn.Module:
    """The first model with the mean of all weights and running statistics.

    Raises:
        ValueError: models of different shapes, with the first difference named.
    """
    states = [part.state_dict() for part in parts]
    for other in states[1:]:
        for key, value in states[0].items():
            if key not in other or other[key].shape != value.shape:
                raise ValueError(
                    f"models to average should have the same weights, but `{key}` is "
                    f"{tuple(value.shape)} in one and "
                    f"{tuple(other[key].shape) if key in other else 'missing'} in "
                    "another; use runs of one architecture"
                )
    mean = {}
    for key, value in states[0].items():
        if value.is_floating_point():
            mean[key] = torch.stack([one[key].float() for one in states]).mean(0)
        else:
            mean[key] = value  # counters
    parts[0].load_state_dict(mean)
    return parts[0].eval()


@dataclass(frozen=True)
class Soup:
    """Averaged runs.

    Attributes:
        oof: each row by the soup of its fold.
        test: the soft vote of the folds' soups.
        members: runs whose weights are in the final soup.
    """

    oof: Predictions
    test: Predictions
    members: list[str]


def cook(
    glasses: Mapping[str, Glass],
    oofs: Mapping[str, Predictions],
    manifest: pd.DataFrame,
    *,
    greedy: bool,
    views: Sequence[str] = (),
    way: compute.Compute = PLAIN,
) -> Soup:
    """Average runs of one architecture, fold by fold.

    Args:
        glasses: the opened runs; their weights are needed.
        oofs: their out-of-fold predictions, on the same folds.
        manifest: every predicted image must have a label in it.
        greedy: add runs from the best down while they help, instead of all.
        views: beside the upright one.
        way: precision, layout and device.
    Returns:
        A soup whose out-of-fold rows were scored by ingredients chosen without them.
    """
    kept = {name: joining.without_dropped(oofs[name], manifest) for name in glasses}
    joining.check_same_images(kept)
    first = next(iter(kept.values()))
    kept = {
        name: joining.take_images(one, first.image_ids) for name, one in kept.items()
    }
    joining.check_same_folds(kept)
    truth = joining.find_truth(first, manifest)
    ordered = sorted(kept, key=lambda name: -float((kept[name].labels == truth).mean()))
    tasted: dict[tuple[str, ...], Predictions] = {}

    def taste(members: tuple[str, ...]) -> Predictions:
        """Out-of-fold predictions of a soup, cooked once."""
        if members not in tasted:
            chosen = [glasses[name] for name in members]
            tasted[members] = _predict_folds(chosen, first, views, way)
        return tasted[members]

    members = tuple(ordered)
    if greedy:
        members = _choose(ordered, taste, truth, np.ones(len(truth), bool))
    logits = taste(members).logits.copy()
    for fold in np.unique(first.fold) if greedy else ():
        held = first.fold == fold
        logits[held] = taste(_choose(ordered, taste, truth, ~held)).logits[held]
    oof = replace(taste(members), logits=logits)
    test = _predict_test([glasses[n] for n in members], manifest, first, (views, way))
    return Soup(oof, test, list(members))


def _choose(
    ordered: Sequence[str],
    taste: Callable[[tuple[str, ...]], Predictions],
    truth: np.ndarray,
    where: np.ndarray,
) -> tuple[str, ...]:
    """Runs from the best down, each kept if the soup does not lose pictures by it."""
    members: tuple[str, ...] = (ordered[0],)
    reached = int((taste(members).labels == truth)[where].sum())
    for name in ordered[1:]:
        hits = int((taste((*members, name)).labels == truth)[where].sum())
        if hits >= reached:
            members, reached = (*members, name), hits
    return members


def _cook_fold(chosen: Sequence[Glass], fold: int) -> nn.Module:
    return average_models(
        [
            trained.load_model(one.run_dir, fold, one.network, len(one.classes))
            for one in chosen
        ]
    )


def _predict_folds(
    chosen: Sequence[Glass],
    like: Predictions,
    views: Sequence[str],
    way: compute.Compute,
) -> Predictions:
    """Each row of `like` by the averaged model of the fold that held it out."""
    parts = []
    for fold in np.unique(like.fold):
        ids = pd.Series(like.image_ids[like.fold == fold])
        model = _cook_fold(chosen, int(fold))
        parts.append(_predict(chosen[0], model, ids, int(fold), (views, way)))
    return joining.take_images(predictions.concatenate(parts), like.image_ids)


def _predict_test(
    chosen: Sequence[Glass],
    manifest: pd.DataFrame,
    like: Predictions,
    how: tuple[Sequence[str], compute.Compute],
) -> Predictions:
    ids = manifests.test_rows(manifest)["image_id"]
    return predictions.average(
        [
            _predict(chosen[0], _cook_fold(chosen, int(fold)), ids, -1, how)
            for fold in np.unique(like.fold)
        ]
    )


def _predict(
    glass: Glass,
    model: nn.Module,
    image_ids: pd.Series,
    fold: int,
    how: tuple[Sequence[str], compute.Compute],
) -> Predictions:
    rows = glass.pixels.rows(image_ids)
    examples = datasets.Examples(glass.pixels, rows, np.full(len(rows), -1))
    return predictions.predict(
        model, examples, glass.classes, way=how[1], tta=how[0], fold=fold
    )


def compare_views(
    glass: Glass, oof: Predictions, way: compute.Compute = PLAIN
) -> dict[str, Predictions]:
    """Out-of-fold predictions of a run from each set of views, by name.

    Three views together are told from the pairs, without another pass.

    Args:
        glass: the opened run; its weights are needed.
        oof: gives the rows and their folds.
        way: precision, layout and device.
    """
    seen = {
        name: _predict_folds([glass], oof, views, way) for name, views in VIEWS.items()
    }
    names = ("upright", "and mirrored", "and upside down")
    upright, mirrored, turned = (seen[name].probs for name in names)
    three = (2 * mirrored + 2 * turned - upright) / 3  # each pair holds the upright
    three = np.clip(three, 0, None)
    three /= three.sum(axis=1, keepdims=True)
    first = next(iter(seen.values()))
    return seen | {"and both": ensemble.make_predictions(first, three)}


def time_pictures(glass: Glass, *, pictures: int = 64) -> float:
    """Seconds a picture that all of a run's models take together, on this machine.

    The faster of two passes over the first pictures of the cache.
    """
    found = sorted(glass.run_dir.glob("fold*/model.safetensors"))
    ids = pd.Series(glass.pixels.image_ids[:pictures])
    model = trained.load_model(glass.run_dir, 0, glass.network, len(glass.classes))
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        _predict(glass, model, ids, -1, ((), PLAIN))
        seconds.append(time.perf_counter() - started)
    return min(seconds) / len(ids) * len(found)
