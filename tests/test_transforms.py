import numpy as np
import pytest
from conftest import CLASSES, draw_shape

from sketchlib.training import transforms


@pytest.fixture
def drawing(rng):
    return draw_shape("square", rng)


def draw(name, pixels, epoch=0, row=0, seed=0):
    return transforms.draw(transforms.make_recipe(name), pixels, seed, epoch, row)


@pytest.mark.parametrize("name", transforms.RECIPES)
def test_shape_and_type_stay_and_the_drawing_survives(name, rng):
    for channels in (1, 3):
        for row, shape in enumerate(CLASSES):
            pixels = draw_shape(shape, rng)
            if channels == 3:
                pixels = np.dstack([pixels] * 3)
            made = draw(name, pixels, row=row)
            assert made.shape == pixels.shape
            assert made.dtype == np.uint8
            assert 0.3 < transforms.ink_change(pixels, made) < 5


@pytest.mark.parametrize("name", set(transforms.RECIPES) - {"noise_blur"})
def test_white_paper_stays_light_in_every_corner(name, drawing):
    for epoch in range(30):
        made = draw(name, drawing, epoch)
        corners = made[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.min() > 150, (name, epoch)
        assert np.ptp(corners.astype(int)) <= 12, (name, epoch)


def test_a_negative_keeps_its_own_dark_ground(drawing):
    for epoch in range(20):
        made = draw("affine_boxes", 255 - drawing, epoch)
        assert made[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 20
        assert np.array_equal(255 - made, draw("affine_boxes", drawing, epoch))


def test_a_draw_depends_on_seed_epoch_and_row_alone(drawing):
    recipe = transforms.make_recipe("affine_boxes")
    first = transforms.draw(recipe, drawing, 1, 2, 3)
    transforms.draw(recipe, drawing, 9, 9, 9)
    assert np.array_equal(first, transforms.draw(recipe, drawing, 1, 2, 3))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not np.array_equal(first, transforms.draw(recipe, drawing, *other))


def test_f46_two_coin_flips_are_independent():
    """χ² of two p = 0.5 transforms over 600 draws; 1 degree of freedom."""
    pixels = np.full((16, 16), 255, np.uint8)
    pixels[2:6, 2:4] = 0  # moves under either flip, and differently
    counts = np.zeros((2, 2))
    recipe = transforms.A.Compose(
        [transforms.A.HorizontalFlip(p=0.5), transforms.A.VerticalFlip(p=0.5)],
        strict=True,
    )
    for row in range(600):
        made = transforms.draw(recipe, pixels, 0, 0, row)
        counts[int(made[:8].min() > 0), int(made[:, :8].min() > 0)] += 1
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 10.8  # p = 0.001
    assert counts.min() > 100


def test_thicker_and_thinner_do_what_they_say(drawing):
    thicker, thinner = transforms._line_weight().transforms
    ink = (255 - drawing.astype(float)).sum()
    assert (255.0 - thicker(image=drawing[:, :, None])["image"]).sum() > ink
    assert (255.0 - thinner(image=drawing[:, :, None])["image"]).sum() < ink


def test_f47_a_misspelt_name_or_argument_is_an_error():
    with pytest.raises(ValueError, match="did you mean 'affine_boxes'"):
        transforms.make_recipe("afine_boxes")
    with pytest.raises(ValueError):
        transforms.A.Compose([transforms.A.Affine(cval=255)], strict=True)
