"""Named augmentation recipes for drawings, built on albumentations 2.0.8.

A recipe is a list of transforms that keep white paper white; morphology is named by
its effect on the line (OpenCV's dilation thins dark lines). Randomness is drawn
per picture from (seed, epoch, row), because albumentations 2.0.8 gives every loader
worker the same draws and repeats them each epoch (AlbumentationsX issue 266).
Limits: uint8 pictures, grey (H, W, 1) or colour (H, W, 3).
"""

import difflib
import os
import random
from collections.abc import Callable
from typing import TypeAlias

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks PyPI otherwise

import albumentations as A
import cv2
import numpy as np

from sketchlib.data import cache

WHITE = 255
Step: TypeAlias = A.BasicTransform | A.OneOf


def _flip() -> Step:
    return A.HorizontalFlip(p=0.5)


def _upside_down() -> Step:
    return A.VerticalFlip(p=0.5)


def _rotate() -> Step:
    return A.Rotate(limit=15, fill=WHITE, p=0.7)


def _light() -> Step:
    return A.RandomBrightnessContrast(
        brightness_limit=0.2, contrast_limit=0.2, ensure_safe_range=True, p=0.5
    )


def _affine() -> Step:
    return A.Affine(
        scale=(0.8, 1.1),
        translate_percent=(-0.08, 0.08),
        rotate=(-15, 15),
        shear=(-8, 8),
        fill=WHITE,
        p=0.8,
    )


def _boxes() -> Step:
    return A.CoarseDropout(
        num_holes_range=(1, 4),
        hole_height_range=(0.08, 0.25),
        hole_width_range=(0.08, 0.25),
        fill=WHITE,
        p=0.5,
    )


def _line_weight() -> Step:
    """Thicker lines by erosion, thinner ones by dilation: the paper is the maximum."""
    thicker = A.Morphological(scale=(2, 3), operation="erosion", p=1.0)
    thinner = A.Morphological(scale=(2, 2), operation="dilation", p=1.0)
    return A.OneOf([thicker, thinner], p=0.5)


def _noise() -> Step:
    return A.GaussNoise(std_range=(0.02, 0.1), p=0.5)


def _blur() -> Step:
    return A.OneOf(
        [
            A.MotionBlur(blur_limit=(3, 5), p=1.0),
            A.GaussianBlur(blur_limit=(3, 5), p=1.0),
        ],
        p=0.5,
    )


def _elastic() -> Step:
    return A.ElasticTransform(alpha=40, sigma=6, fill=WHITE, p=0.4)


def _grid() -> Step:
    return A.GridDistortion(num_steps=5, distort_limit=0.25, fill=WHITE, p=0.4)


def _equalise() -> Step:
    return A.CLAHE(clip_limit=(1, 3), p=0.5)


RECIPES: dict[str, tuple[Callable[[], Step], ...]] = {
    "none": (),
    "flip": (_flip,),
    "flip_rotate_light": (_flip, _rotate, _light),
    "affine_boxes": (_flip, _affine, _boxes),
    "affine_lines_boxes": (_flip, _affine, _line_weight, _boxes),
    "noise_blur": (_flip, _affine, _noise, _blur),
    "elastic_grid": (_flip, _rotate, _elastic, _grid),
    "upside_down": (_flip, _upside_down, _affine, _boxes),
    "equalise": (_flip, _affine, _equalise),
}


def check_recipe(name: str) -> None:
    """Raise ValueError, with the nearest name, unless `name` is a recipe."""
    if name in RECIPES:
        return
    close = difflib.get_close_matches(name, RECIPES, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"`augment` must be one of {', '.join(RECIPES)}, but {name!r} came{hint}"
    )


def make_recipe(name: str) -> A.Compose:
    """A strict pipeline for one picture at a time; seed it with `draw`.

    Raises:
        ValueError: unknown name, with the nearest one.
    """
    check_recipe(name)
    return A.Compose([make() for make in RECIPES[name]], strict=True)


def draw(
    recipe: A.Compose, pixels: np.ndarray, seed: int, epoch: int, row: int
) -> np.ndarray:
    """One augmented copy of a picture, the same for the same (seed, epoch, row).

    A drawing on dark ground is augmented as its negative, so that what moves into
    the frame has the colour of its own paper.

    Args:
        recipe: from `make_recipe`.
        pixels: (S, S) or (S, S, 3) uint8.
        seed: of the run.
        epoch: from 0.
        row: the picture's row number.
    Returns:
        uint8, same shape.
    """
    if not recipe.transforms:
        return pixels
    source = np.random.SeedSequence([seed, epoch, row])
    recipe.set_random_state(
        np.random.default_rng(source), random.Random(int(source.generate_state(1)[0]))
    )
    grey = pixels.ndim == 2
    picture = pixels[:, :, None] if grey else pixels
    dark = _ground(pixels) < cache.DARK_GROUND
    drawn = recipe(image=255 - picture if dark else picture)["image"]
    drawn = 255 - drawn if dark else drawn
    return drawn.reshape(pixels.shape)


def _ground(pixels: np.ndarray) -> int:
    """Median grey of the four corners; enough for a cached, padded picture."""
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    return int(np.median(corners))


def ink_change(before: np.ndarray, after: np.ndarray) -> float:
    """Ink share of `after` over that of `before`; 1 is unchanged, 0 gone blank."""
    shares = [float((255 - _as_grey(pixels)).mean()) for pixels in (before, after)]
    return shares[1] / max(shares[0], 1e-6)


def _as_grey(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
