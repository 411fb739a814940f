"""Averaged models are averages, scored on pictures no ingredient trained on."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from recipes import TINY
from safetensors.torch import save_file

from sketchlib.analysis import soups
from sketchlib.analysis.looking import Glass
from sketchlib.data import cache
from sketchlib.training.predictions import Predictions

CLASSES = ["a", "b", "c"]
NETWORK = dataclasses.replace(TINY, model="resnet10t")


def make_glass(folder, seed):
    """A run of two folds with random weights, on twelve random pictures."""
    for fold in range(2):
        torch.manual_seed(10 * seed + fold)
        model = timm.create_model("resnet10t", num_classes=3)
        (folder / f"fold{fold}").mkdir(parents=True)
        save_file(model.state_dict(), folder / f"fold{fold}" / "model.safetensors")
    rng = np.random.default_rng(0)
    ids = np.array([f"train/{n}" for n in range(9)] + [f"test/{n}" for n in range(3)])
    pixels = rng.integers(0, 256, (12, 32, 32), np.uint8)
    geometry = cache.Geometry(32, "ink", "grey", "white")
    seen = cache.PixelCache(pixels, ids, np.ones(12, bool), geometry)
    return Glass(folder, NETWORK, seen, CLASSES)


@pytest.fixture
def kitchen(tmp_path):
    glasses = {name: make_glass(tmp_path / name, n) for n, name in enumerate("xy")}
    ids = [f"train/{n}" for n in range(9)]
    labels = np.arange(9) % 3
    table = pd.DataFrame({"image_id": ids, "label": labels, "subset": "train"})
    table["class_name"] = np.array(CLASSES)[labels]
    test = pd.DataFrame({"image_id": [f"test/{n}" for n in range(3)], "label": -1})
    table = pd.concat([table, test.assign(subset="test", class_name="")])
    table.attrs["classes"] = CLASSES
    fold = np.arange(9) % 2
    blank = Predictions(np.array(ids), np.array(CLASSES), np.zeros((9, 3), "f4"), fold)
    oofs = {
        name: soups._predict_folds([glass], blank, (), soups.PLAIN)
        for name, glass in glasses.items()
    }
    return SimpleNamespace(
        glasses=glasses, oofs=oofs, table=table.reset_index(drop=True)
    )


def test_weights_and_statistics_are_averaged():
    models = [timm.create_model("resnet10t", num_classes=2) for _ in range(2)]
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    mean = soups.average_models(models).state_dict()
    for key in ("fc.weight", "bn1.running_mean", "layer1.0.conv1.weight"):
        torch.testing.assert_close(mean[key], (states[0][key] + states[1][key]) / 2)


def test_other_shapes_are_refused_by_name():
    models = [timm.create_model("resnet10t", num_classes=k) for k in (2, 3)]
    with pytest.raises(ValueError, match=r"`fc.weight` is \(2, 512\) in one and \(3,"):
        soups.average_models(models)


def test_a_run_with_itself_is_that_run(kitchen):
    glass, oof = kitchen.glasses["x"], kitchen.oofs["x"]
    twice = {"x": glass, "again": glass}
    for greedy in (False, True):
        oofs = {"x": oof, "again": oof}
        soup = soups.cook(twice, oofs, kitchen.table, greedy=greedy)
        np.testing.assert_allclose(soup.oof.probs, oof.probs, atol=1e-4)
        assert soup.members == ["x", "again"]
        assert soup.test.image_ids.tolist() == [f"test/{n}" for n in range(3)]


def test_a_greedy_soup_never_loses_to_its_first_run_where_it_chose(kitchen):
    labels = kitchen.table["label"].to_numpy()[:9]
    soup = soups.cook(kitchen.glasses, kitchen.oofs, kitchen.table, greedy=True)
    best = max(int((one.labels == labels).sum()) for one in kitchen.oofs.values())
    chosen = [kitchen.glasses[name] for name in soup.members]
    whole = soups._predict_folds(chosen, kitchen.oofs["x"], (), soups.PLAIN)
    assert int((whole.labels == labels).sum()) >= best


def test_only_runs_of_one_model_and_geometry_share_a_pot():
    def record(model, side, stats="model"):
        network = {"model": model, "stats": stats}
        return {"network": network, "geometry": {"side_px": side}}

    pots = soups.find_pots(
        {
            "a": record("resnet18", 96),
            "b": record("resnet18", 96),
            "c": record("resnet18", 128),
            "d": record("resnet34", 96),
            "f": record("resnet18", 96, "0.9,0.9,0.9/0.2,0.2,0.2"),
            "e": {"state": "done"},
        }
    )
    assert pots == [["a", "b"]]


def test_three_views_are_told_from_the_pairs(kitchen):
    glass, oof = kitchen.glasses["x"], kitchen.oofs["x"]
    seen = soups.compare_views(glass, oof)
    both = soups._predict_folds([glass], oof, ("hflip", "vflip"), soups.PLAIN)
    assert list(seen) == [*soups.VIEWS, "and both"]
    np.testing.assert_allclose(seen["and both"].probs, both.probs, atol=1e-4)
