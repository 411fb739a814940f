import cv2
import numpy as np
import pandas as pd
import pytest

from sketchlib import workspace
from sketchlib.data import cache, manifest, splits
from sketchlib.training import extras, offline


@pytest.fixture
def rows(world):
    table = manifest.read_manifest(world)
    folds = splits.make_folds(table, None, 3, 0)
    return manifest.train_rows(table).merge(folds[["image_id", "fold"]], on="image_id")


def order(kind, copies=1):
    return offline.Order(kind, copies, 64, 0.5, 3)


@pytest.mark.parametrize("kind", ["canny", "sobel", "blur", "closing", "elastic"])
def test_every_readable_training_picture_gets_a_variant(kind, rows, world, tmp_path):
    made = offline.make_variants(rows.iloc[:16], world, order(kind, 2), tmp_path)
    broken = {"train/square/sketch_3.JPEG"}
    assert set(made["source_id"]) == set(rows["image_id"][:16]) - broken
    assert (made.groupby("source_id").size() == 2).all()
    assert made["image_id"].is_unique
    labels = rows.set_index("image_id")["label"]
    assert (made["label"] == made["source_id"].map(labels)).all()
    assert (made["weight"] == 0.5).all()
    for path in made["path"]:
        pixels = cv2.imread(str(tmp_path / path), cv2.IMREAD_UNCHANGED)
        assert max(pixels.shape[:2]) == 64
    facts = workspace.read_json(tmp_path / kind / "provenance.json")
    assert facts["seed"] == 3 and facts["steps"] and facts["written"] == len(made)


def test_a_second_time_gives_the_same_files(rows, world, tmp_path):
    for folder in ("a", "b"):
        offline.make_variants(rows.iloc[:4], world, order("elastic"), tmp_path / folder)
    for path in (tmp_path / "a" / "elastic").glob("*.png"):
        assert (
            path.read_bytes() == (tmp_path / "b" / "elastic" / path.name).read_bytes()
        )


@pytest.mark.parametrize("kind", offline.MOSAICS)
def test_a_mosaic_is_of_one_class_and_one_fold(kind, rows, world, tmp_path):
    made = offline.make_variants(rows, world, order(kind), tmp_path)
    known = rows.set_index("image_id")
    for column in ("label", "fold"):
        own = known.loc[made["source_id"], column].to_numpy()
        assert (own == known.loc[made["partner_id"], column].to_numpy()).all()
    assert (made["source_id"] != made["partner_id"]).all()
    pixels = cv2.imread(str(tmp_path / made["path"].iloc[0]), cv2.IMREAD_UNCHANGED)
    wide = pixels.shape[1] > pixels.shape[0]
    assert wide == (kind == "hstack")
    assert offline.check_variants(made, rows).tolist() == (
        made["source_id"].map(known["fold"]).tolist()
    )


def test_stacked_pictures_keep_their_own_paper():
    white = np.full((10, 6), 255, np.uint8)
    tinted = np.full((20, 8, 3), (250, 240, 200), np.uint8)
    made = offline.stack_pictures([white, tinted], "hstack")
    assert made.shape == (20, 14, 3)
    assert (made[:, :6] == 255).all()
    assert (made[:, 6:] == (250, 240, 200)).all()


def test_a_mosaic_across_folds_is_refused(rows, world, tmp_path):
    made = offline.make_variants(rows, world, order("hstack"), tmp_path)
    moved = rows.copy()
    moved.loc[moved["image_id"] == made["partner_id"].iloc[0], "fold"] = 99
    with pytest.raises(ValueError, match="mosaic should be in one fold"):
        offline.check_variants(made, moved)


def test_test_pictures_never_have_variants(world, rows, tmp_path):
    tests = manifest.test_rows(manifest.read_manifest(world)).assign(fold=0)
    with pytest.raises(ValueError, match="training pictures only"):
        offline.make_variants(tests, world, order("canny"), tmp_path)
    strange = pd.DataFrame(
        {"image_id": ["v"], "source_id": [tests["image_id"].iloc[0]]}
    )
    with pytest.raises(ValueError, match="source should be a training picture"):
        offline.check_variants(strange, rows)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("cany", {}, "did you mean 'canny'"),
        ("canny", {"copies": 0}, "`copies` should be at least 1"),
        ("canny", {"weight": 0.0}, "`weight` should be over 0"),
    ],
)
def test_a_wrong_order_is_refused(kind, change, message):
    asked = {"kind": kind, "copies": 1, "side_px": 64, "weight": 1.0, "seed": 0}
    with pytest.raises(ValueError, match=message):
        offline.Order(**(asked | change))


def test_variants_serve_every_model_but_the_one_that_holds_their_original(
    rows, world, tmp_path
):
    run = tmp_path / "runs" / "augmentation"
    made = [
        offline.make_variants(rows, world, order(kind), run / "variants")
        for kind in ("canny", "hstack")
    ]
    written = pd.concat(made, ignore_index=True)
    written.assign(path="variants/" + written["path"]).to_csv(
        run / offline.FILE, index=False
    )
    extra = offline.read_variants(run, rows)
    fold_of = written.set_index("image_id")["source_id"].map(
        rows.set_index("image_id")["fold"]
    )
    for fold in range(3):
        served = extras.for_fold(extra, fold)["image_id"]
        assert set(served) == set(fold_of.index[fold_of != fold])
        assert served.is_unique
    assert set(extras.for_fold(extra, -1)["image_id"]) == set(fold_of.index)
    assert set(extra["source"]) == {"variant: canny", "variant: hstack"}
    assert (extra["weight"] == 0.5).all()
    pixels = cache.open_pixels(
        extra.drop_duplicates("image_id"),
        world,
        cache.Geometry(32, "ink", "grey", "white"),
        tmp_path / "cache",
    )
    assert pixels.readable.all()


def test_a_run_without_variants_says_how_to_write_them(rows, tmp_path):
    with pytest.raises(FileNotFoundError, match="-p variants"):
        offline.read_variants(tmp_path / "augmentation", rows)
