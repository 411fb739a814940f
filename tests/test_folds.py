import dataclasses

import numpy as np
import pytest
from recipes import FP32, TINY, make, make_task

from sketchlib.data import manifest
from sketchlib.training import folds, loop, models, trained


@pytest.fixture
def task(world, tmp_path):
    return make_task(world, tmp_path, tta=("hflip",))


def test_every_training_picture_is_predicted_by_a_model_that_did_not_see_it(task):
    results = {fold: folds.train_fold(task, fold) for fold in (0, 1)}
    oof, test = trained.join_results(results, task.run_dir)
    assert sorted(oof.image_ids) == sorted(task.folds["image_id"])
    held = task.folds.set_index("image_id")["fold"]
    assert (held.loc[oof.image_ids].to_numpy() == oof.fold).all()
    assert list(test.image_ids) == [f"test/{number}.JPEG" for number in range(8)]
    for fold in (0, 1):
        train, valid, _ = folds.make_examples(task, fold)
        assert not set(train.image_ids) & set(valid.image_ids)
        assert "train/square/sketch_3.JPEG" not in train.image_ids


def test_a_finished_fold_is_read_back_and_a_changed_one_is_trained_anew(
    task, monkeypatch
):
    first = folds.train_fold(task, 0)
    real = loop.fit
    monkeypatch.setattr(loop, "fit", None)
    again = folds.train_fold(task, 0)
    assert np.array_equal(first.oof.logits, again.oof.logits)
    monkeypatch.setattr(loop, "fit", real)
    changed = dataclasses.replace(task, recipe=make(epochs=1, lr=0.01))
    assert not np.array_equal(first.oof.logits, folds.train_fold(changed, 0).oof.logits)
    assert not list(task.run_dir.rglob("*.pt"))


def test_the_saved_model_gives_the_written_predictions(task):
    result = folds.train_fold(task, 0)
    model = trained.load_model(task.run_dir, 0, task.network, 4)
    _, valid, _ = folds.make_examples(task, 0)
    made = folds.predictions.predict(
        model, valid, result.oof.classes, way=FP32, tta=("hflip",), fold=0
    )
    np.testing.assert_allclose(made.probs, result.oof.probs, atol=1e-5)


def test_a_model_normalises_by_the_pixels_in_training_and_when_loaded(task):
    asked = dataclasses.replace(task.network, stats="dataset")
    measured = asked.with_stats(task.pixels)
    own = dataclasses.replace(task, network=measured)
    result = folds.train_fold(own, 0)
    model = trained.load_model(own.run_dir, 0, measured, 4)
    seen = task.pixels.pixels[task.pixels.readable] / 255
    assert models.input_stats(model)[0].numpy() == pytest.approx(seen.mean(), abs=1e-5)
    _, valid, _ = folds.make_examples(own, 0)
    made = folds.predictions.predict(
        model, valid, result.oof.classes, way=FP32, tta=("hflip",), fold=0
    )
    np.testing.assert_allclose(made.probs, result.oof.probs, atol=1e-5)
    plain = dataclasses.replace(task, run_dir=task.run_dir.with_name("plain"))
    other = folds.train_fold(plain, 0)
    assert not np.allclose(other.oof.logits, result.oof.logits)
    assert not np.allclose(folds.extract(own), folds.extract(task))


def test_a_fold_below_zero_holds_nothing_out(task):
    result = folds.train_fold(task, -1)
    assert len(result.oof.image_ids) == 0
    assert len(result.test.image_ids) == 8
    assert result.history["valid_loss"].isna().all()


def test_weights_that_were_not_copied_are_named(task):
    with pytest.raises(FileNotFoundError, match="can be blended, but not looked into"):
        trained.load_model(task.run_dir, 0, task.network, 4)


def test_the_probe_covers_the_rows_that_were_predicted(task):
    ids = task.folds.loc[task.folds["fold"] == 0, "image_id"]
    assert sorted(folds.probe(task, list(ids)).image_ids) == sorted(ids)


def test_training_starts_where_the_probe_ends(task):
    network = dataclasses.replace(
        TINY, model="tf_efficientnet_lite0", weights="auto", head="probe"
    )
    task = dataclasses.replace(task, network=network, tta=())
    train, valid, _ = folds.make_examples(task, 0)
    model = network.make(4)
    folds._start_from_probe(task, model, train)
    started = folds.predictions.predict(
        model, valid, manifest.class_names(task.table), way=FP32
    )
    probed = folds.probe(task, list(valid.image_ids))
    order = np.argsort(probed.image_ids), np.argsort(started.image_ids)
    np.testing.assert_allclose(
        probed.probs[order[0]], started.probs[order[1]], atol=0.02
    )


def test_a_probe_needs_pretrained_weights():
    with pytest.raises(ValueError, match="use `head` random"):
        dataclasses.replace(TINY, head="probe").check()


def test_a_run_of_all_rows_alone_predicts_the_test_pictures(task):
    results = {fold: folds.train_fold(task, fold) for fold in (0, -1)}
    oof, test = trained.join_results(results, task.run_dir)
    assert set(oof.fold) == {0}
    assert np.array_equal(test.logits, results[-1].test.logits)
    history = trained.join_histories(results, task.run_dir)
    assert set(history["fold"]) == {0, -1}
    logged = folds.workspace.read_jsonl(task.run_dir / "metrics.jsonl")
    assert [row["fold"] for row in logged] == history["fold"].tolist()


def test_the_folds_that_are_trained():
    assert folds.list_folds(3, False) == [0, 1, 2]
    assert folds.list_folds(3, True) == [0, 1, -1]
    assert folds.list_folds(1, True) == [0, -1]


def test_a_fraction_leaves_held_out_rows_alone(task):
    less = dataclasses.replace(task, recipe=make(epochs=1, data_fraction=0.5))
    train, valid, _ = folds.make_examples(task, 0)
    fewer, same, _ = folds.make_examples(less, 0)
    assert list(valid.image_ids) == list(same.image_ids)
    assert 0.3 * len(train.rows) < len(fewer.rows) < 0.7 * len(train.rows)
    assert set(fewer.image_ids) <= set(train.image_ids)


def test_a_found_rate_is_read_back_by_a_run_that_goes_on(task, monkeypatch):
    task.run_dir.mkdir()
    found = folds.with_found_lr(task)
    assert found.recipe.lr != task.recipe.lr
    monkeypatch.setattr(loop, "find_lr", None)
    assert folds.with_found_lr(task).recipe == found.recipe


def test_a_missed_target_makes_the_other_folds_needless(task):
    asked = make(epochs=3, target_accuracy=0.99, target_epochs=1, lr=1e-9)
    task = dataclasses.replace(task, recipe=asked)
    result = folds.train_fold(task, 0)
    assert len(result.history) == 1
    assert folds.is_hopeless(task, result)
