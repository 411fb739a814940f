import dataclasses
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import draw_shape
from recipes import GEOMETRY, make_task

from sketchlib import workspace
from sketchlib.analysis import pseudo
from sketchlib.data import cache, manifest, splits
from sketchlib.training import extras, folds
from sketchlib.training.predictions import Predictions, write_predictions


@pytest.fixture
def extra_world(own_world, rng):
    (own_world / "extra").mkdir()
    for number, name in enumerate(["circle", "cross"]):
        cv2.imwrite(str(own_world / "extra" / f"{number}.png"), draw_shape(name, rng))
    table = pd.DataFrame(
        {
            "image_path": ["0.png", "1.png"],
            "class_name": ["circle", "cross"],
            "weight": [0.5, 0.25],
            "source": ["generated", "drawn by hand"],
        }
    )
    table.to_csv(own_world / "extra.csv", index=False)
    return own_world


def take_extra(world, tmp_path, extra, table):
    """The task of the world's drawings with `extra` ones beside them."""
    wider = extras.with_extra(table, extra)
    pixels = cache.open_pixels(wider, world, GEOMETRY, tmp_path / "cache")
    return make_task(world, tmp_path, pixels=pixels, extra=extra)


def test_extra_pictures_train_every_fold_and_are_never_held_out(extra_world, tmp_path):
    table = manifest.read_manifest(extra_world)
    extra = extras.read_extra(extra_world, "extra.csv", table)
    task = take_extra(extra_world, tmp_path, extra, table)
    extras.check_no_copies(task.pixels, extra)
    for fold in (0, 1, -1):
        train, valid, test = folds.make_examples(task, fold)
        weight = dict(zip(train.image_ids, train.weights, strict=True))
        assert weight["extra/0.png"] == 0.5
        assert weight["extra/1.png"] == 0.25
        assert set(weight.values()) == {1.0, 0.5, 0.25}
        assert not set(extra["image_id"]) & {*valid.image_ids, *test.image_ids}
    result = folds.train_fold(task, 0)
    assert not set(extra["image_id"]) & set(result.oof.image_ids)
    counted = extras.count_sources(extra)
    assert counted["pictures"].tolist() == [1, 1]
    assert set(counted["source"]) == {"generated", "drawn by hand"}


def test_other_weights_are_another_task(extra_world, tmp_path):
    table = manifest.read_manifest(extra_world)
    extra = extras.read_extra(extra_world, "extra.csv", table)
    task = take_extra(extra_world, tmp_path, extra, table)
    first = folds.train_fold(task, 0)
    heavier = dataclasses.replace(task, extra=extra.assign(weight=1.0))
    second = folds.train_fold(heavier, 0)
    assert not np.array_equal(first.oof.logits, second.oof.logits)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("weight", "2", "`weight` should be 0-1, but .*row 2"),
        ("source", "", "where the picture comes from"),
        ("class_name", "dragon", "one of the 4 classes"),
        ("image_path", "../test/0.JPEG", "stay in its folder"),
    ],
)
def test_a_bad_row_is_named(extra_world, column, value, words):
    table = manifest.read_manifest(extra_world)
    rows = pd.read_csv(extra_world / "extra.csv", dtype=str)
    rows.loc[0, column] = value
    rows.to_csv(extra_world / "extra.csv", index=False)
    with pytest.raises(ValueError, match=words):
        extras.read_extra(extra_world, "extra.csv", table)


def test_a_missing_file_is_named_and_no_file_is_no_pictures(extra_world):
    table = manifest.read_manifest(extra_world)
    with pytest.raises(FileNotFoundError, match="nowhere.csv does not exist"):
        extras.read_extra(extra_world, "nowhere.csv", table)
    none = extras.read_extra(extra_world, "", table)
    assert none.empty
    assert extras.with_extra(table, none) is table


def test_a_copy_of_a_picture_of_the_data_set_is_refused(extra_world, tmp_path):
    source = extra_world / "train" / "square" / "sketch_5.JPEG"
    shutil.copy(source, extra_world / "extra" / "0.png")
    table = manifest.read_manifest(extra_world)
    extra = extras.read_extra(extra_world, "extra.csv", table)
    task = take_extra(extra_world, tmp_path, extra, table)
    with pytest.raises(ValueError, match="square/sketch_5.JPEG"):
        extras.check_no_copies(task.pixels, extra)


# --- pseudo-labels ----------------------------------------------------------


def predict(ids, names, fold, certain=0.99):
    logits = np.full((len(ids), 4), np.log((1 - certain) / 3))
    logits[np.arange(len(ids)), names] = np.log(certain)
    folds_of = np.broadcast_to(fold, len(ids)).copy()
    classes = np.array(["circle", "cross", "square", "stairs"])
    return Predictions(np.asarray(ids), classes, logits.astype(np.float32), folds_of)


def test_runs_must_agree_be_certain_and_classes_are_balanced():
    ids = [f"test/{number}" for number in range(6)]
    one = predict(ids, [0, 0, 0, 1, 2, 3], -1)
    two = predict(ids, [0, 0, 0, 1, 1, 3], -1)
    one.logits[1] *= 0.98  # a little less certain than its neighbours
    one.logits[5] = 0  # not certain at all
    asked = pseudo.Asked(["a", "b"], 0.6, 2, 0.5)
    made = pseudo.choose_labels([one, two], asked)
    assert dict(zip(made["image_id"], made["label"], strict=True)) == {
        "test/0": 0,
        "test/2": 0,
        "test/3": 1,
    }
    assert set(made["weight"]) == {0.5}


@pytest.fixture
def two_runs(world, tmp_path):
    """Two finished runs; each fold's model names the test pictures its own way."""
    table = manifest.read_manifest(world)
    held = splits.make_folds(table, None, 2, seed=0)
    labels = table.set_index("image_id")["label"].loc[held["image_id"]].to_numpy()
    tests = manifest.test_rows(table)["image_id"].to_numpy()
    for run in ("a", "b"):
        folder = tmp_path / run
        oof = predict(held["image_id"].to_numpy(), labels, held["fold"].to_numpy())
        oof.logits[::7] = oof.logits[::7][:, ::-1]  # some mistakes: a finite fit
        write_predictions(folder / "oof.npz", oof)
        for fold, name in ((0, 1), (1, 2)):
            given = predict(tests, np.full(len(tests), name), -1)
            write_predictions(folder / f"fold{fold}" / "test.npz", given)
        write_predictions(folder / "test.npz", predict(tests, np.full(8, 3), -1))
    return tmp_path, table, held


def test_a_fold_learns_only_from_models_that_did_not_see_it(two_runs):
    runs_dir, table, held = two_runs
    asked = pseudo.Asked(["a", "b"], 0.3, 3, 0.5)
    made = pseudo.make_pseudo(asked, runs_dir, table, held)
    assert made.groupby("serves")["label"].unique().map(list).to_dict() == {
        0: [1],
        1: [2],
        extras.ALL_ROWS: [3],
    }
    assert (made.groupby("serves").size() == 3).all()
    assert set(extras.for_fold(made, 0)["label"]) == {1}
    assert set(extras.for_fold(made, -1)["label"]) == {3}


def test_runs_of_other_folds_or_one_run_alone_are_refused(two_runs):
    runs_dir, table, held = two_runs
    asked = pseudo.Asked(["a", "b"], 0.3, 3, 0.5)
    other = held.assign(fold=1 - held["fold"])
    with pytest.raises(ValueError, match="would tell this fold's answers"):
        pseudo.make_pseudo(asked, runs_dir, table, other)
    with pytest.raises(ValueError, match="two or more runs"):
        pseudo.Asked(["a"], 0.9, 3, 0.5)
    with pytest.raises(FileNotFoundError, match="oof.npz"):
        pseudo.make_pseudo(pseudo.Asked(["a", "c"], 0.9, 3, 0.5), runs_dir, table, held)
    record = {"parameters": {"all_rows": True}}
    workspace.write_json(runs_dir / "b" / "run.json", record)
    with pytest.raises(ValueError, match="saw every row"):
        pseudo.check_apart(asked, "new", runs_dir)


def test_copies_of_training_pictures_get_no_pseudo_label(two_runs):
    runs_dir, table, held = two_runs
    made = pseudo.make_pseudo(
        pseudo.Asked(["a", "b"], 0.3, 8, 0.5), runs_dir, table, held
    )
    groups = pd.DataFrame(
        {
            "image_id": ["test/0.JPEG", "train/circle/sketch_2.JPEG", "test/1.JPEG"],
            "group": ["g", "g", "h"],
        }
    )
    (runs_dir / "audit").mkdir()
    groups.to_csv(runs_dir / "audit" / "groups.csv", index=False)
    kept = set(pseudo.drop_copies(made, runs_dir / "audit")["image_id"])
    assert "test/0.JPEG" not in kept
    assert "test/1.JPEG" in kept
    assert len(kept) == 7
