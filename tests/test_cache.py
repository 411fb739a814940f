import dataclasses
import os

import cv2
import numpy as np
import pytest

from sketchlib.data import cache, images, manifest

GREY = cache.Geometry(48, "ink", "grey", "white")


@pytest.fixture
def table(world):
    return manifest.read_manifest(world)


def test_every_picture_is_a_row_and_unreadable_ones_are_white(world, table, tmp_path):
    made = cache.open_pixels(table, world, GREY, tmp_path)
    assert made.pixels.shape == (len(table), 48, 48)
    broken = table.index[table["path"] == "train/square/sketch_3.JPEG"][0]
    assert not made.readable[broken]
    assert made.readable.sum() == len(table) - 1
    assert (made.pixels[broken] == 255).all()


def test_the_second_call_decodes_nothing(world, table, tmp_path, monkeypatch):
    first = cache.open_pixels(table, world, GREY, tmp_path)
    monkeypatch.setattr(cache.images, "read_picture", None)
    again = cache.open_pixels(table, world, GREY, tmp_path)
    assert np.array_equal(first.pixels, again.pixels)


def test_a_changed_file_or_geometry_makes_a_new_cache(own_world, tmp_path):
    table = manifest.read_manifest(own_world)
    cache.open_pixels(table, own_world, GREY, tmp_path)
    path = own_world / table["path"].iloc[0]
    os.utime(path, ns=(1, 1))
    cache.open_pixels(table, own_world, GREY, tmp_path)
    cache.open_pixels(table, own_world, dataclasses.replace(GREY, fit="pad"), tmp_path)
    assert len(list(tmp_path.glob("pixels-????????????????.npy"))) == 3


def test_the_ink_fills_the_square_and_the_margin_stays_white():
    page = np.full((300, 200), 255, np.uint8)
    page[100:140, 60:100] = 0
    made = cache.fit_picture(page, GREY)
    inked = np.flatnonzero((made < 128).any(axis=0))
    assert inked[0] in (2, 3)
    assert inked[-1] in (44, 45)
    assert (made[0] == 255).all()


def test_a_negative_becomes_dark_on_light_and_paper_white(rng):
    page = np.full((90, 90), 20, np.uint8)
    page[30:60, 30:60] = 240
    turned = cache.fit_picture(page, GREY)
    assert np.median(turned[0]) == 255
    assert turned[24, 24] < 40
    toned = np.full((90, 90), 180, np.uint8)
    toned[30:60, 30:60] = 10
    assert np.median(cache.fit_picture(toned, GREY)[0]) == 255
    kept = cache.fit_picture(page, dataclasses.replace(GREY, paper="keep", fit="pad"))
    assert kept[0, 0] == 20


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (70, 33)])
@pytest.mark.parametrize("fit", cache.FITS)
def test_f15_any_shape_becomes_the_square(shape, fit):
    geometry = cache.Geometry(32, fit, "grey", "white")
    assert cache.fit_picture(np.full(shape, 255, np.uint8), geometry).shape == (32, 32)
    colour = cache.fit_picture(np.full((*shape, 3), 255, np.uint8), geometry)
    assert colour.shape == (32, 32, 3)


@pytest.mark.parametrize(
    "wrong", [{"fit": "squash"}, {"paper": "x"}, {"channels": "x"}, {"side_px": 0}]
)
def test_a_geometry_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
        dataclasses.replace(GREY, **wrong)


@pytest.mark.parametrize("shape", [(130, 100), (250, 250), (383, 300, 3), (900, 700)])
def test_shrinking_averages_as_opencv_does(shape, rng):
    drawn = cv2.GaussianBlur(rng.integers(0, 256, shape, np.uint8), (0, 0), 1.5)
    drawn = cv2.normalize(drawn, None, 0, 255, cv2.NORM_MINMAX)
    quick = images.shrink(drawn, 96, 96).astype(int)
    exact = cv2.resize(drawn, (96, 96), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(quick - exact).mean() < 6
    assert abs(quick.mean() - exact.mean()) < 0.5
    assert quick.std() == pytest.approx(exact.std(), rel=0.1)


@pytest.mark.parametrize("shape", [(60, 100), (100, 60), (1, 50), (33, 33)])
def test_crop_keeps_the_middle_square(shape, rng):
    pixels = rng.integers(0, 256, shape, np.uint8)
    side, (height, width) = min(shape), shape
    top, left = (height - side) // 2, (width - side) // 2
    geometry = cache.Geometry(32, "crop", "grey", "keep")
    alone = cache.fit_picture(pixels[top : top + side, left : left + side], geometry)
    assert np.array_equal(cache.fit_picture(pixels, geometry), alone)
