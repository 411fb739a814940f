import numpy as np
import pandas as pd
import pytest
import timm
from recipes import FP32
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sketchlib import workspace
from sketchlib.data import cache, manifest
from sketchlib.training import features

CLASSES = ["a", "b", "c"]


@pytest.fixture
def pixels(world, tmp_path):
    table = manifest.test_rows(manifest.read_manifest(world))
    geometry = cache.Geometry(32, "ink", "grey", "white")
    return cache.open_pixels(table, world, geometry, tmp_path)


def extract(pixels, folder, model=None, views=("hflip",)):
    workspace.seed_everything(0)
    model = model or timm.create_model("test_resnet", num_classes=0)
    return features.extract(
        model, pixels, FP32, views=views, name="test", cache_dir=folder
    )


def test_features_are_computed_once(pixels, tmp_path, monkeypatch):
    first = extract(pixels, tmp_path)
    assert first.shape[:2] == (2, 8)
    assert first.dtype == np.float16
    assert not np.allclose(first[0], first[1])
    monkeypatch.setattr(features, "_compute", None)
    assert np.array_equal(first, extract(pixels, tmp_path))


def test_other_weights_make_other_features(pixels, tmp_path):
    first = extract(pixels, tmp_path)
    workspace.seed_everything(1)
    other = timm.create_model("test_resnet", num_classes=0)
    assert not np.allclose(first, extract(pixels, tmp_path, other))


@pytest.fixture
def clusters(rng):
    labels = np.repeat([0, 1, 2], 20)
    found = rng.normal(size=(1, 60, 8)).astype(np.float16)
    found[0, np.arange(60), labels] += 4
    ids = [f"train/{number}" for number in range(60)]
    folds = pd.DataFrame({"image_id": ids, "fold": np.tile([0, 1, 2], 20)})
    return found, labels, folds


def test_the_probe_equals_scikit_learn_on_each_fold(clusters):
    found, labels, folds = clusters
    made = features.probe_folds(found, labels, folds, CLASSES, strength=0.1)
    held = folds["fold"].to_numpy() == 1
    scaler = StandardScaler().fit(found[0][~held])
    head = LogisticRegression(C=0.1, max_iter=200, tol=1e-3)
    head.fit(scaler.transform(found[0][~held]), labels[~held])
    expected = head.predict_proba(scaler.transform(found[0][held]))
    np.testing.assert_allclose(made.probs[held], expected, atol=1e-3)
    assert (made.labels == labels).mean() > 0.9


def test_a_row_never_teaches_its_own_prediction(clusters):
    found, labels, folds = clusters
    wrong = labels.copy()
    wrong[0] = 2
    one = features.probe_folds(found, labels, folds, CLASSES).probs[0]
    two = features.probe_folds(found, wrong, folds, CLASSES).probs[0]
    np.testing.assert_array_equal(one, two)


def test_a_class_missing_from_training_gets_no_probability(clusters):
    found, labels, folds = clusters
    folds = folds.assign(fold=np.where(labels == 2, 0, -1))
    made = features.probe_folds(found, labels, folds, CLASSES)
    assert made.probs[:, 2].max() < 1e-9
    assert np.isfinite(made.logits).all()


def test_rows_without_a_fold_only_train(clusters):
    found, labels, folds = clusters
    folds = folds.assign(fold=np.where(np.arange(60) < 30, -1, folds["fold"]))
    made = features.probe_folds(found, labels, folds, CLASSES)
    assert len(made.image_ids) == 30
