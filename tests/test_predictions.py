import numpy as np
import pytest
import timm
from recipes import FP32

from sketchlib import workspace
from sketchlib.data import cache, manifest
from sketchlib.training import datasets, predictions
from sketchlib.training.predictions import Predictions

CLASSES = np.array(["a", "b", "c"])


def make(rng, rows=5, fold=0):
    ids = np.array([f"train/{number}" for number in range(rows)])
    logits = rng.normal(size=(rows, 3)).astype(np.float32)
    return Predictions(ids, CLASSES, logits, np.full(rows, fold))


def test_a_file_gives_back_what_was_written(rng, tmp_path):
    made = make(rng)
    predictions.write_predictions(tmp_path / "oof.npz", made)
    again = predictions.read_predictions(tmp_path / "oof.npz")
    assert np.array_equal(again.logits, made.logits)
    assert again.image_ids.tolist() == made.image_ids.tolist()
    assert again.fold.tolist() == made.fold.tolist()


def test_the_average_is_the_mean_probability(rng):
    parts = [make(rng) for _ in range(3)]
    mean = np.mean([part.probs for part in parts], axis=0)
    np.testing.assert_allclose(predictions.average(parts).probs, mean, atol=1e-6)
    same = predictions.average([parts[0]] * 4)
    np.testing.assert_allclose(same.probs, parts[0].probs, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logits": np.full((5, 3), np.nan, np.float32)}, "finite"),
        ({"logits": np.zeros((5, 2), np.float32)}, "5 images × 3 classes"),
        ({"image_ids": np.array(["x"] * 5)}, "predicted once"),
        ({"fold": np.zeros(4)}, "`fold` should have 5"),
    ],
)
def test_f53_wrong_arrays_are_detected(rng, change, words):
    made = make(rng)
    fields = {name: getattr(made, name) for name in made.__dataclass_fields__}
    with pytest.raises(ValueError, match=words):
        Predictions(**(fields | change))


def test_a_missing_file_names_the_notebook(tmp_path):
    with pytest.raises(FileNotFoundError, match="run 03_train"):
        predictions.read_predictions(tmp_path / "lite0" / "oof.npz")


@pytest.fixture(scope="module")
def setting(world, tmp_path_factory):
    table = manifest.test_rows(manifest.read_manifest(world))
    geometry = cache.Geometry(32, "ink", "grey", "white")
    pixels = cache.open_pixels(table, world, geometry, tmp_path_factory.mktemp("c"))
    rows = np.arange(len(table))
    workspace.seed_everything(0)
    model = timm.create_model("test_resnet", num_classes=3)
    return model, datasets.Examples(pixels, rows, np.full(len(rows), -1))


def test_batch_size_does_not_change_predictions(setting):
    model, examples = setting
    whole = predictions.predict(model, examples, CLASSES, way=FP32)
    parts = predictions.predict(model, examples, CLASSES, way=FP32, batch_size=3)
    np.testing.assert_allclose(whole.probs, parts.probs, atol=1e-5)
    assert whole.image_ids.tolist() == examples.image_ids.tolist()


def test_a_flip_is_averaged_as_probability(setting):
    model, examples = setting
    flipped = cache.PixelCache(
        np.ascontiguousarray(examples.pixels.pixels[:, :, ::-1]),
        examples.pixels.image_ids,
        examples.pixels.readable,
        examples.pixels.geometry,
    )
    mirror = datasets.Examples(flipped, examples.rows, examples.labels)
    upright, turned = (
        predictions.predict(model, rows, CLASSES, way=FP32).probs
        for rows in (examples, mirror)
    )
    both = predictions.predict(model, examples, CLASSES, way=FP32, tta=["hflip"])
    np.testing.assert_allclose(both.probs, (upright + turned) / 2, atol=1e-5)
    lone = predictions.predict(model, examples, CLASSES, way=FP32, tta=["tilt"])
    assert not np.allclose(lone.probs, upright, atol=1e-3)
    four = predictions.predict(
        model, examples, CLASSES, way=FP32, tta=["hflip", "tilt"]
    )
    other = predictions.predict(model, mirror, CLASSES, way=FP32, tta=["hflip", "tilt"])
    assert not np.allclose(four.probs, both.probs, atol=1e-3)
    assert not np.allclose(four.probs, other.probs, atol=1e-4)  # tilted the other way
    with pytest.raises(ValueError, match="'spin' came"):
        predictions.predict(model, examples, CLASSES, way=FP32, tta=["spin"])
