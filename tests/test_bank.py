import dataclasses
import shutil

import numpy as np
import pytest
import timm
import torch
from recipes import FP32, TINY, make
from test_folds import task  # noqa: F401

from sketchlib import workspace
from sketchlib.data import cache, manifest
from sketchlib.training import bank, folds, trained
from sketchlib.training import recipe as rules

HEAD = make(frozen=True, norm="still", epochs=6, batch_size=16, lr=0.01, augment="flip")
VIEWS = ["plain", "hflip", "flip#0", "flip#1"]


@pytest.fixture
def pixels(world, tmp_path):
    table = manifest.test_rows(manifest.read_manifest(world))
    geometry = cache.Geometry(32, "ink", "grey", "white")
    return cache.open_pixels(table, world, geometry, tmp_path / "cache")


@pytest.fixture
def model():
    workspace.seed_everything(0)
    return timm.create_model("test_resnet", num_classes=0).eval()


def fill(model, pixels, folder, views=VIEWS, progress=None):
    return bank.compute_bank(
        model, pixels, FP32, views, seed=3, folder=folder, facts={}, progress=progress
    )


def test_a_bank_holds_each_view_of_each_picture(model, pixels, tmp_path):
    made = fill(model, pixels, tmp_path / "b")
    assert made.features.shape == (4, 8, model.num_features)
    assert made.features.dtype == np.float16
    draws = made.features[2:]  # flips at one half: each is the plain or the mirrored
    plain, mirrored = made.features[0], made.features[1]
    assert not np.allclose(plain, mirrored, atol=1e-2)
    for draw in draws:
        for row in range(8):
            same = [
                np.allclose(draw[row], v[row], atol=1e-2) for v in (plain, mirrored)
            ]
            assert any(same)
    assert made.take(1, ["test/3.JPEG"])[0] == pytest.approx(mirrored[3].astype(float))


def test_a_bank_that_was_interrupted_goes_on_and_ends_the_same(
    model, pixels, tmp_path, monkeypatch
):
    whole = fill(model, pixels, tmp_path / "whole")
    monkeypatch.setattr(bank, "CHUNK", 5)

    def kill(done, total):
        if done >= 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(model, pixels, tmp_path / "cut", progress=kill)
    with pytest.raises(FileNotFoundError, match="copy the whole folder"):
        bank.read_bank(tmp_path / "cut")
    seen = []
    again = fill(
        model, pixels, tmp_path / "cut", progress=lambda done, _: seen.append(done)
    )
    assert seen[0] == 20
    np.testing.assert_allclose(whole.features, again.features, atol=1e-2)


def test_joined_banks_stand_side_by_side_by_image_id(model, pixels, tmp_path):
    one = fill(model, pixels, tmp_path / "one")
    turned = bank.Bank(one.features[:, ::-1], one.image_ids[::-1], one.views)
    both = bank.join_banks([one, turned])
    width = one.features.shape[2]
    assert np.array_equal(both.features[..., :width], both.features[..., width:])
    with pytest.raises(ValueError, match="should have the same views"):
        bank.join_banks([one, dataclasses.replace(one, views=["plain"] * 4)])


def test_a_missing_picture_is_named(model, pixels, tmp_path):
    made = fill(model, pixels, tmp_path / "b", views=["plain"])
    with pytest.raises(ValueError, match="first 'test/gone.JPEG'"):
        made.take(0, ["test/gone.JPEG"])


@pytest.fixture
def clusters(rng):
    labels = np.repeat([0, 1, 2], 20)
    features = rng.normal(size=(3, 60, 8)).astype(np.float16) * 3 + 20
    features[:, np.arange(60), labels] += 12
    ids = np.array([f"train/{number}" for number in range(60)])
    return bank.Bank(features, ids, ["plain", "flip#0", "flip#1"]), bank.Rows(
        ids, labels
    )


@pytest.mark.parametrize("layers", ["linear", "mlp", "multi_dropout"])
def test_every_head_learns_and_takes_raw_features(clusters, layers):
    made, rows = clusters
    form = bank.Form(layers, 16, 0.2)
    recipe = dataclasses.replace(HEAD, epochs=20)
    head, history = bank.fit_head(made, rows, rows, recipe, form, classes=3)
    assert history["valid_accuracy"].iloc[-1] > 0.9
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    found = bank.predict(head, made, rows.image_ids, list("abc"), tta=(), fold=0)
    assert (found.labels == rows.labels).mean() == pytest.approx(
        history["valid_accuracy"].iloc[-1]
    )
    again, _ = bank.fit_head(made, rows, rows, recipe, form, classes=3)
    for one, two in zip(head.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_picture_without_weight_teaches_a_head_nothing(clusters):
    made, rows = clusters
    recipe = dataclasses.replace(HEAD, epochs=20)
    form = bank.Form("linear", 16, 0.0)
    wrong = rows.labels.copy()
    wrong[::2] = (wrong[::2] + 1) % 3
    weights = np.arange(60) % 2
    heard, unheard = (
        bank.fit_head(
            made, bank.Rows(rows.image_ids, wrong, given), rows, recipe, form, classes=3
        )[1]["valid_accuracy"].iloc[-1]
        for given in (None, weights)
    )
    assert unheard > 0.9
    assert heard < 0.8


def test_a_curriculum_shows_the_views_of_its_recipe(clusters):
    made, rows = clusters
    recipe = dataclasses.replace(
        HEAD, augment="none", curriculum=("3:flip:0.5",), lr=0.01, schedule="constant",
        warmup_epochs=0.0,
    )  # fmt: skip
    shown = bank._load_views(made, rows.image_ids, recipe)
    assert torch.equal(bank._draw_epoch(shown, recipe, 0), shown["plain"][0])
    later = bank._draw_epoch(shown, recipe, 2)
    assert all(
        any(torch.equal(later[row], view[row]) for view in shown["flip"])
        for row in range(60)
    )
    form = bank.Form("linear", 0, 0.0)
    _, history = bank.fit_head(made, rows, rows, recipe, form, classes=3)
    assert history["lr"].iloc[0] == pytest.approx(2 * history["lr"].iloc[-1])


def test_views_that_are_not_there_are_asked_for(clusters):
    made, rows = clusters
    form = bank.Form("linear", 0, 0.0)
    recipe = dataclasses.replace(HEAD, augment="affine_boxes")
    with pytest.raises(ValueError, match="views of the recipe 'affine_boxes'"):
        bank.fit_head(made, rows, rows, recipe, form, classes=3)
    recipe = dataclasses.replace(HEAD, mixup_alpha=0.2)
    with pytest.raises(ValueError, match="`mixup_alpha` 0.0, but 0.2 came"):
        rules.check_banked(recipe)
    with pytest.raises(ValueError, match="set `frozen: true`"):
        rules.check_banked(make())


def test_a_run_on_the_bank_leaves_what_a_run_leaves(task, tmp_path):  # noqa: F811
    network = dataclasses.replace(
        TINY, model="tf_efficientnet_lite0", weights="auto", head_layers="mlp"
    )
    asked = dataclasses.replace(task, recipe=HEAD, network=network)
    ready = folds.with_bank(asked, 2, [])
    results = [folds.train_fold(ready, fold) for fold in (0, 1)]
    oof, _ = trained.join_results(dict(enumerate(results)), ready.run_dir)
    assert sorted(oof.image_ids) == sorted(task.folds["image_id"])
    made = trained.load_model(ready.run_dir, 0, network, 4)
    _, valid, _ = folds.make_examples(ready, 0)
    seen = folds.predictions.predict(
        made, valid, results[0].oof.classes, way=FP32, tta=("hflip",), fold=0
    )
    np.testing.assert_allclose(seen.probs, results[0].oof.probs, atol=0.02)
    folder = next(task.cache_dir.glob("bank-*"))
    shutil.move(folder, tmp_path / "copied")
    copied = folds.with_bank(asked, 0, [str(tmp_path / "copied")])
    assert not list(task.cache_dir.glob("bank-*"))
    again = folds.train_fold(dataclasses.replace(copied, fresh=True), 0)
    assert np.array_equal(again.oof.logits, results[0].oof.logits)


def test_a_probe_cannot_start_a_head_on_the_bank(task):  # noqa: F811
    network = dataclasses.replace(TINY, head="probe", weights="auto")
    asked = dataclasses.replace(task, recipe=HEAD, network=network)
    with pytest.raises(ValueError, match="set `head: random`"):
        folds.with_bank(asked, 2, [])
