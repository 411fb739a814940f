import numpy as np
import pytest

from sketchlib.data import cache, manifest
from sketchlib.training import datasets, previews, steps


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
    none = previews.measure_ink(pixels, rows, "none", 0, 1.5)
    assert none["low_ink"] == none["high_ink"] == 1
    assert (none["gone_blank"], none["over_limit"], none["flag"]) == (0, 0, "")
    boxes = previews.measure_ink(pixels, rows, "affine_boxes", 0, 1.01)
    assert boxes["low_ink"] < 0.95
    assert boxes["flag"] == "ink"


def test_pictures_that_go_blank_are_counted(pixels, monkeypatch, tmp_path):
    monkeypatch.setenv("SKETCHBOOK_ROOT", str(tmp_path))
    folder = tmp_path / "params" / "recipes"
    folder.mkdir(parents=True)
    (folder / "shift.yaml").write_text("- affine: {shift: 0.5, scale: 0.9, p: 1}")
    rows = previews.choose_rows(pixels, 40, seed=0)
    found = previews.measure_ink(pixels, rows, "shift", 0, 2.0)
    assert found["gone_blank"] > 0
    assert found["flag"] == "pictures gone blank"


def test_each_step_is_shown_at_three_strengths(pixels):
    row = int(previews.choose_rows(pixels, 1, seed=0)[0])
    shown = previews.draw_strengths(pixels, row, seed=0)
    assert set(shown) == set(steps.KINDS)
    assert len(shown["flip"]) == 1
    low, mid, high = shown["noise"]
    picture = pixels.pixels[row].astype(int)
    change = [np.abs(made.astype(int) - picture).mean() for made in (low, mid, high)]
    assert 0 < change[0] < change[1] < change[2]


def test_mixing_is_of_two_pictures(pixels):
    rows = previews.choose_rows(pixels, 5, seed=0)
    state = np.random.get_state()[1].copy()
    made = previews.mix_pictures(pixels, rows, seed=0)
    assert (np.random.get_state()[1] == state).all()
    assert [len(made[name]) for name in ("mixup", "cutmix")] == [4, 4]
    first, other = pixels.pixels[rows[0]], pixels.pixels[rows[3]]
    assert ((made["cutmix"][0] == first) | (made["cutmix"][0] == other)).all()
    between = np.minimum(first, other) - 1.0, np.maximum(first, other) + 1.0
    assert (made["mixup"][0] >= between[0]).all()
    assert (made["mixup"][0] <= between[1]).all()


def test_every_geometry_is_compared(world, pixels):
    table = manifest.train_rows(manifest.read_manifest(world))
    shown = previews.compare_geometries(table, world, [0, 1], 32)
    assert len(shown) == 2 * len(previews.GEOMETRIES)
    assert all(picture.shape == (32, 32) for picture in shown)
