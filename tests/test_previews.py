import numpy as np
import pytest

from sketchlib.data import cache, manifest
from sketchlib.training import datasets, previews


@pytest.fixture
def pixels(world, tmp_path):
    table = manifest.train_rows(manifest.read_manifest(world))
    geometry = cache.Geometry(48, "ink", "grey", "white")
    return cache.open_pixels(table, world, geometry, tmp_path)


def test_blank_and_unreadable_pictures_are_not_chosen(pixels):
    rows = previews.choose_rows(pixels, 100, seed=0)
    assert len(rows) == 46
    chosen = set(pixels.image_ids[rows])
    assert not chosen & {"train/square/sketch_3.JPEG", "train/cross/sketch_2.JPEG"}


def test_what_is_shown_is_what_is_trained_on(pixels):
    rows = np.arange(len(pixels.image_ids))
    examples = datasets.Examples(pixels, rows, np.zeros(len(rows), int))
    dataset = datasets.SketchDataset(examples, "affine_boxes", seed=5)
    shown = previews.draw_many(pixels, 3, "affine_boxes", 4, seed=5)
    for epoch, picture in enumerate(shown):
        assert np.array_equal(datasets.as_picture(dataset[(epoch, 3)][0]), picture)


def test_ink_is_unchanged_without_augmentation_and_lost_under_boxes(pixels):
    rows = previews.choose_rows(pixels, 20, seed=0)
    none = previews.measure_ink(pixels, rows, "none", seed=0)
    assert none["low_ink"] == none["high_ink"] == 1
    boxes = previews.measure_ink(pixels, rows, "affine_boxes", seed=0)
    assert boxes["low_ink"] < 0.95


def test_every_geometry_is_compared(world, pixels):
    table = manifest.train_rows(manifest.read_manifest(world))
    shown = previews.compare_geometries(table, world, [0, 1], 32)
    assert len(shown) == 2 * len(previews.GEOMETRIES)
    assert all(picture.shape == (32, 32) for picture in shown)
