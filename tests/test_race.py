import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from recipes import FP32, TINY, make

from sketchlib.data import cache, manifest, splits
from sketchlib.training import datasets, models, race, recipes

BASE = cache.Geometry(32, "stretch", "grey", "keep")
NETWORK = TINY


def make_track(world, folder, method="probe"):
    table = manifest.read_manifest(world)
    fold_table = splits.make_folds(table, None, 2, 0)
    recipe = make(epochs=2, batch_size=16)
    return race.Track(
        table, fold_table, world, folder, NETWORK, recipe, FP32, method, 2
    )


def test_a_setting_says_what_differs():
    setting = race.parse_setting("flip+pad+colour+dataset", BASE)
    assert (setting.recipe, setting.stats) == ("flip", "dataset")
    assert setting.geometry == cache.Geometry(32, "pad", "colour", "keep")
    assert race.parse_setting("flip", BASE).geometry == BASE
    with pytest.raises(ValueError, match="did you mean 'stretch'"):
        race.parse_setting("flip+strech", BASE)
    with pytest.raises(ValueError, match="did you mean 'flip'"):
        race.parse_setting("flop", BASE)


def test_each_seed_holds_out_other_folds_until_all_have_been():
    table = pd.DataFrame({"fold": [0, 1, 2, 3, 4]})
    assert race.plan_heats(table, 3, 1) == [(0, 0), (1, 1), (2, 2)]
    assert race.plan_heats(table, 2, 2) == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert len(race.plan_heats(table, 2, 0)) == 10


@pytest.mark.parametrize("method", race.METHODS)
def test_a_heat_covers_the_held_out_fold_and_is_run_once(
    method, world, tmp_path, monkeypatch
):
    track = make_track(world, tmp_path, method)
    setting = race.parse_setting("affine_boxes", BASE)
    heat = race.run_heat(track, setting, 0, 1)
    held = track.rows[track.rows["fold"] == 1]
    assert sorted(heat["image_id"]) == sorted(held["image_id"])
    assert heat["hit"].dtype == bool
    assert heat["seconds"].iloc[0] > 0
    fresh = make_track(world, tmp_path / "other", method)
    (tmp_path / "other").mkdir()
    again = race.run_heat(fresh, setting, 0, 1)
    assert again["hit"].tolist() == heat["hit"].tolist()  # the same, computed anew
    monkeypatch.setattr(race, "_probe", None)
    monkeypatch.setattr(race, "_finetune", None)
    pd.testing.assert_frame_equal(race.run_heat(track, setting, 0, 1), heat)


def test_what_a_heat_depends_on_makes_it_another(world, tmp_path):
    track = make_track(world, tmp_path)
    setting = race.parse_setting("flip", BASE)
    first = race._describe(track, setting, 0, 0)
    assert first != race._describe(track, setting, 1, 0)
    assert first != race._describe(track, race.parse_setting("flip+pad", BASE), 0, 0)
    assert first != race._describe(
        track, race.parse_setting("flip+dataset", BASE), 0, 0
    )
    assert first != race._describe(dataclasses.replace(track, views=3), setting, 0, 0)


def test_the_draws_differ_between_views_and_seeds(world, tmp_path):
    track = make_track(world, tmp_path)
    setting = race.parse_setting("affine_boxes", BASE)
    pixels = track.open_pixels(setting.geometry)
    first, _ = race._drawn_features(track, setting, pixels, 0)
    other, _ = race._drawn_features(track, setting, pixels, 1)
    assert first.shape[:2] == (2, 48)
    assert not np.allclose(first[0], first[1])
    assert not np.allclose(first, other)


def test_dataset_statistics_are_those_of_the_pixels(world, tmp_path):
    track = make_track(world, tmp_path)
    pixels = track.open_pixels(dataclasses.replace(BASE, channels="colour"))
    mean, std = datasets.measure_stats(pixels)
    seen = pixels.pixels[pixels.readable] / 255
    assert np.allclose(mean, seen.mean(axis=(0, 1, 2)))
    assert np.allclose(std, seen.std(axis=(0, 1, 2)))
    asked = dataclasses.replace(TINY, stats="dataset")
    with pytest.raises(ValueError, match="call `with_stats`"):
        asked.make(3)
    model = asked.with_stats(pixels).make(3)
    assert torch.allclose(models.input_stats(model)[0], torch.tensor(mean), atol=1e-5)
    assert torch.allclose(models.input_stats(model)[1], torch.tensor(std), atol=1e-5)


def test_the_winner_is_a_file_of_parameters_for_training(tmp_path):
    setting = race.parse_setting("noise_blur+ink+dataset", BASE)
    path = tmp_path / "augmentation" / "winner.yaml"
    path.parent.mkdir()
    race.write_winner(path, setting, "it won")
    assert yaml.safe_load(path.read_text()) == {
        "augment": "noise_blur",
        "fit": "ink",
        "paper": "keep",
        "channels": "grey",
        "stats": "dataset",
    }
    assert recipes.find_winner("winner", tmp_path) == "noise_blur"


def test_a_track_is_made_of_the_training_notebooks_defaults(world, tmp_path):
    from sketchlib.workbook import session

    table = manifest.read_manifest(world)
    fold_table = splits.make_folds(table, None, 2, 0)
    asked = session.read_defaults("03_train") | {
        "model": "test_resnet",
        "weights": "none",
        "side_px": 32,
        "race_by": "finetune",
        "race_epochs": 1,
        "precision": "fp32",
        "layout": "nchw",
    }
    track = race.make_track(
        table, fold_table, asked, data_dir=world, cache_dir=tmp_path
    )
    assert track.recipe.epochs == 1
    assert (track.network.head, track.views, track.method) == ("random", 1, "finetune")
