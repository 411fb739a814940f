"""Named augmentation recipes, applied to one drawing at a time.

Randomness is drawn per picture from (seed, epoch, row) and from nothing else:
albumentations 2.0.8 gives every loader worker the same draws and repeats them each
epoch (AlbumentationsX issue 266), and with a seed its transforms draw identical
streams. What moves into the frame has the colour of the drawing's own paper.
Limits: uint8 pictures, grey (H, W) or colour (H, W, 3).
"""

import functools
import random
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from sketchlib.data import cache
from sketchlib.training import recipes, steps
from sketchlib.training.recipes import check_recipe as check_recipe


@dataclass(frozen=True)
class Pipeline:
    """A recipe ready to be drawn from."""

    steps: tuple[recipes.Step, ...]

    @functools.cached_property
    def channel_wise(self) -> bool:
        """Whether equal channels stay equal, whatever is drawn."""
        return all(_is_channel_wise(step) for step in self.steps)


def make_recipe(name: str) -> Pipeline:
    """The recipe `name`, ready for `draw`.

    Raises:
        ValueError: unknown name, step or argument, with the nearest one.
    """
    return Pipeline(recipes.read_recipe(name))


def _is_channel_wise(step: recipes.Step) -> bool:
    if step.choices:
        return all(_is_channel_wise(choice) for choice in step.choices)
    if step.name not in steps.KINDS:  # a transform of albumentations
        return False
    return steps.KINDS[step.name].how != "paint" or step.name in steps.CHANNEL_WISE


def draw(
    recipe: Pipeline, pixels: np.ndarray, seed: int, epoch: int, row: int
) -> np.ndarray:
    """One augmented copy of a picture, the same for the same (seed, epoch, row).

    A drawing on dark ground is augmented as its negative, so that what moves into
    the frame has the colour of its own paper.

    Args:
        recipe: from `make_recipe`.
        pixels: (H, W) or (H, W, 3) uint8.
        seed: of the run.
        epoch: from 0.
        row: the picture's row number.
    Returns:
        uint8, same shape.
    """
    if not recipe.steps:
        return pixels
    only = _only_channel(pixels) if recipe.channel_wise else None
    if only is not None:  # as most drawings are, even in a cache that has colour
        return _as_colour(draw(recipe, only, seed, epoch, row))
    rng = random.Random(f"{seed}/{epoch}/{row}")  # SHA-512 of the text
    ground = find_ground(pixels)
    dark = (ground if isinstance(ground, int) else sum(ground) // 3) < cache.DARK_GROUND
    if dark:
        pixels, ground = cv2.bitwise_not(pixels), _negative(ground)
    canvas = _Canvas(pixels, ground, rng)
    for step in recipe.steps:
        if epoch >= step.from_epoch and rng.random() < step.chance:
            canvas.apply(step)
    drawn = canvas.finish()
    return cv2.bitwise_not(drawn) if dark else drawn


def _only_channel(pixels: np.ndarray) -> np.ndarray | None:
    """(H, W) of a picture in colour whose channels are equal; None of any other."""
    if pixels.ndim == 2:
        return None
    first = cv2.extractChannel(pixels, 0)
    return first if np.array_equal(_as_colour(first), pixels) else None


def _as_colour(grey: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def _negative(ground: steps.Ground) -> steps.Ground:
    return 255 - ground if isinstance(ground, int) else tuple(255 - g for g in ground)


def find_ground(pixels: np.ndarray) -> steps.Ground:
    """The paper's colour: the median of the corners and the middles of the edges."""
    height, width = pixels.shape[:2]
    far_y, far_x, mid_y, mid_x = height - 1, width - 1, height // 2, width // 2
    points = (
        (0, 0), (0, far_x), (far_y, 0), (far_y, far_x),
        (0, mid_x), (far_y, mid_x), (mid_y, 0), (mid_y, far_x),
    )  # fmt: skip
    if pixels.ndim == 2:
        return sorted([pixels.item(point) for point in points])[4]
    rows, columns = zip(*points, strict=True)
    return tuple(sorted(pixels[rows, columns].tolist(), key=sum)[4])


class _Canvas:
    """A picture with moves and tones that are still to be carried out together."""

    def __init__(
        self, pixels: np.ndarray, ground: steps.Ground, rng: random.Random
    ) -> None:
        self.pixels = pixels
        self.ground = ground
        self.rng = rng
        self.matrix: steps.Matrix | None = None
        self.table: np.ndarray | None = None

    def apply(self, step: recipes.Step) -> None:
        """Carry out a step, or put it with those that wait."""
        if step.choices:
            weights = [choice.chance for choice in step.choices]
            self.apply(self.rng.choices(step.choices, weights)[0])
            return
        if step.name.startswith("A."):
            self.finish()
            self.pixels = _draw_foreign(step, self.pixels, self.rng)
            return
        kind, args = steps.KINDS[step.name], dict(step.args)
        if kind.how == "move":
            made = kind.act(self.rng, args)
            self.matrix = made if self.matrix is None else _multiply(made, self.matrix)
        elif kind.how == "tone":
            made = kind.act(self.rng, args)
            self.table = made if self.table is None else made[self.table]
        else:
            self.finish()
            self.pixels = kind.act(self.pixels, self.rng, args, self.ground)

    def finish(self) -> np.ndarray:
        """The picture, everything that waited carried out."""
        if self.matrix is not None:
            self.pixels = _move(self.pixels, self.matrix, self.ground)
        if self.table is not None:  # on the fill as well: tones are the paper's too
            self.pixels = cv2.LUT(self.pixels, self.table)
            self.ground = _look_up(self.table, self.ground)
        self.matrix = self.table = None
        return self.pixels


def _look_up(table: np.ndarray, ground: steps.Ground) -> steps.Ground:
    if isinstance(ground, int):
        return table.item(ground)
    return tuple(table.item(g) for g in ground)


def _multiply(later: steps.Matrix, first: steps.Matrix) -> steps.Matrix:
    """`first`, then `later`."""
    a, b, c, d, x, y = later
    e, f, g, h, u, v = first
    return (
        a * e + b * g,
        a * f + b * h,
        c * e + d * g,
        c * f + d * h,
        a * u + b * v + x,
        c * u + d * v + y,
    )


def _move(pixels: np.ndarray, matrix: steps.Matrix, ground: steps.Ground) -> np.ndarray:
    """Warp about the centre; flips and quarter turns stay exact."""
    height, width = pixels.shape[:2]
    a, b, c, d, x, y = matrix
    if x == y == 0 and b == c == 0 and abs(a) == abs(d) == 1:
        if a > 0 and d > 0:
            return pixels
        return cv2.flip(pixels, 1 if d > 0 else 0 if a > 0 else -1)
    if x == y == 0 and a == d == 0 and abs(b) == abs(c) == 1 and height == width:
        turned = cv2.transpose(pixels)
        return turned if b > 0 and c > 0 else _move(turned, (b, 0, 0, c, 0, 0), ground)
    side = min(height, width)
    mid_x, mid_y = (width - 1) / 2, (height - 1) / 2
    affine = np.array(
        [
            [a, b, mid_x - a * mid_x - b * mid_y + x * side],
            [c, d, mid_y - c * mid_x - d * mid_y + y * side],
        ]
    )
    fill = steps.fill_of(ground)
    return cv2.warpAffine(pixels, affine, (width, height), borderValue=fill)


@functools.cache
def _make_foreign(step: recipes.Step) -> Any:
    return recipes.make_foreign(step)


def _draw_foreign(
    step: recipes.Step, pixels: np.ndarray, rng: random.Random
) -> np.ndarray:
    """A transform of albumentations, drawing from this picture's own stream."""
    transform = _make_foreign(step)
    transform.set_random_state(np.random.default_rng(rng.getrandbits(64)), rng)
    picture = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return transform(image=picture)["image"].reshape(pixels.shape)


def ink_change(before: np.ndarray, after: np.ndarray) -> float:
    """Ink share of `after` over that of `before`; 1 is unchanged, 0 gone blank."""
    shares = [float((255 - _as_grey(pixels)).mean()) for pixels in (before, after)]
    return shares[1] / max(shares[0], 1e-6)


def _as_grey(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
