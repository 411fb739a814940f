"""What can be done to a drawing, by name: the steps that recipes are made of.

A step is a move (an affine matrix), a tone (a table of 256 grey levels) or a paint
(pixels in, pixels out). Successive moves are multiplied and tones chained, so that a
recipe of flip, rotation and contrast costs one warp and one look-up. Morphology is
named by its effect on the line: OpenCV's erosion thickens dark lines on white paper.
Limits: uint8 pictures, grey (H, W) or colour (H, W, 3), dark ink on light ground.
"""

import math
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks PyPI otherwise

import cv2
import numpy as np

Ground: TypeAlias = int | tuple[int, ...]  # grey level of the paper, or RGB
Matrix: TypeAlias = tuple[float, float, float, float, float, float]  # a b c d x y
Args: TypeAlias = Mapping[str, float]
Move: TypeAlias = Callable[[random.Random, Args], Matrix]
Tone: TypeAlias = Callable[[random.Random, Args], np.ndarray]
Paint: TypeAlias = Callable[[np.ndarray, random.Random, Args, Ground], np.ndarray]


@dataclass(frozen=True)
class Dial:
    """One argument of a step.

    Attributes:
        low: a value that is hardly seen.
        mid: what a recipe gets when it does not say.
        high: a value beyond what is likely to help.
        least: smallest value allowed.
        most: largest value allowed.
        text: meaning and unit.
    """

    low: float
    mid: float
    high: float
    least: float
    most: float
    text: str


@dataclass(frozen=True)
class Kind:
    """A step by name: what it does, how (`move`, `tone` or `paint`), its dials."""

    text: str
    how: str
    act: Any
    chance: float
    dials: Mapping[str, Dial]


# --- moves: (a b c d) about the centre, (x y) shift as a share of the side ---


def _flip(_: random.Random, args: Args) -> Matrix:
    return (-1.0, 0.0, 0.0, 1.0, 0.0, 0.0)


def _upside_down(_: random.Random, args: Args) -> Matrix:
    return (1.0, 0.0, 0.0, -1.0, 0.0, 0.0)


_QUARTERS: tuple[Matrix, ...] = (
    (0.0, -1.0, 1.0, 0.0, 0.0, 0.0),
    (-1.0, 0.0, 0.0, -1.0, 0.0, 0.0),
    (0.0, 1.0, -1.0, 0.0, 0.0, 0.0),
)


def _quarter_turn(rng: random.Random, args: Args) -> Matrix:
    return _QUARTERS[int(rng.random() * 3)]


def _rotate(rng: random.Random, args: Args) -> Matrix:
    angle = math.radians(rng.uniform(-args["degrees"], args["degrees"]))
    cos, sin = math.cos(angle), math.sin(angle)
    return (cos, -sin, sin, cos, 0.0, 0.0)


def _affine(rng: random.Random, args: Args) -> Matrix:
    a, b, c, d, _, _ = _rotate(rng, args)
    lean = math.tan(math.radians(rng.uniform(-args["shear"], args["shear"])))
    size = 1 + rng.uniform(-args["scale"], args["scale"])
    x, y = (rng.uniform(-args["shift"], args["shift"]) for _ in range(2))
    return (size * a, size * (a * lean + b), size * c, size * (c * lean + d), x, y)


# --- tones: what becomes of each of 256 grey levels ---------------------------

_LEVELS = np.arange(256, dtype=np.float32)


def _as_table(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _brightness(rng: random.Random, args: Args) -> np.ndarray:
    gain = 1 + rng.uniform(-args["contrast"], args["contrast"])
    shift = 255 * rng.uniform(-args["brightness"], args["brightness"])
    return _as_table((_LEVELS - 127.5) * gain + 127.5 + shift)


def _ink(rng: random.Random, args: Args) -> np.ndarray:
    """Darker or fainter ink; white stays 255."""
    gain = 1 + rng.uniform(-args["strength"], args["strength"])
    return _as_table(255 - (255 - _LEVELS) * gain)


def _invert(_: random.Random, args: Args) -> np.ndarray:
    return _as_table(255 - _LEVELS)


# --- paints -------------------------------------------------------------------


def _ellipse(pixels: float) -> np.ndarray:
    size = int(pixels)
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def _thicker(
    pixels: np.ndarray, rng: random.Random, args: Args, _: Ground
) -> np.ndarray:
    return cv2.erode(pixels, _ellipse(rng.randint(2, int(args["pixels"]))))


def _thinner(
    pixels: np.ndarray, rng: random.Random, args: Args, _: Ground
) -> np.ndarray:
    return cv2.dilate(pixels, _ellipse(rng.randint(2, int(args["pixels"]))))


def _closing(
    pixels: np.ndarray, rng: random.Random, args: Args, _: Ground
) -> np.ndarray:
    """Close gaps in dark lines: OpenCV's opening, since the paper is the maximum."""
    return cv2.morphologyEx(pixels, cv2.MORPH_OPEN, _ellipse(args["pixels"]))


def _boxes(
    pixels: np.ndarray, rng: random.Random, args: Args, ground: Ground
) -> np.ndarray:
    """Boxes of the paper's own colour over the drawing."""
    made = pixels.copy()
    height, width = pixels.shape[:2]
    for _ in range(rng.randint(1, int(args["count"]))):
        tall = max(1, round(height * rng.uniform(0.08, args["size"])))
        wide = max(1, round(width * rng.uniform(0.08, args["size"])))
        top, left = rng.randint(0, height - tall), rng.randint(0, width - wide)
        made[top : top + tall, left : left + wide] = ground
    return made


def _noise(pixels: np.ndarray, rng: random.Random, args: Args, _: Ground) -> np.ndarray:
    spread = np.float32(255 * rng.uniform(0.2, 1) * args["std"])
    grain = np.random.default_rng(rng.getrandbits(64)).standard_normal(
        pixels.shape, np.float32
    )
    return np.clip(pixels + spread * grain, 0, 255).astype(np.uint8)


def _blur(pixels: np.ndarray, rng: random.Random, args: Args, _: Ground) -> np.ndarray:
    return cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, args["sigma"]))


def _motion_blur(
    pixels: np.ndarray, rng: random.Random, args: Args, _: Ground
) -> np.ndarray:
    """The mean along a short line in a random direction."""
    size = 2 * rng.randint(1, int(args["pixels"]) // 2) + 1
    angle = rng.uniform(0, math.pi)
    half = size // 2
    reach = (round(half * math.cos(angle)), round(half * math.sin(angle)))
    kernel = np.zeros((size, size), np.uint8)
    ends = [(half - reach[0], half - reach[1]), (half + reach[0], half + reach[1])]
    cv2.line(kernel, ends[0], ends[1], 1)
    weights = kernel.astype(np.float32) / kernel.sum()
    return cv2.filter2D(pixels, -1, weights, borderType=cv2.BORDER_REPLICATE)


def _warp_field(pixels: np.ndarray, field: np.ndarray, ground: Ground) -> np.ndarray:
    """Move each pixel by a coarse (h, w, 2) field of shifts in pixels, smoothly."""
    height, width = pixels.shape[:2]
    shift = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    x = shift[:, :, 0] + np.arange(width, dtype=np.float32)
    y = shift[:, :, 1] + np.arange(height, dtype=np.float32)[:, None]
    return cv2.remap(pixels, x, y, cv2.INTER_LINEAR, borderValue=fill_of(ground))


def _elastic(
    pixels: np.ndarray, rng: random.Random, args: Args, ground: Ground
) -> np.ndarray:
    """Random smooth shifts, as a hand that trembles (Simard et al. 2003)."""
    waves = int(args["waves"])
    field = np.random.default_rng(rng.getrandbits(64)).uniform(-1, 1, (waves, waves, 2))
    reach = args["shift"] * min(pixels.shape[:2])
    return _warp_field(pixels, (reach * field).astype(np.float32), ground)


def _grid(
    pixels: np.ndarray, rng: random.Random, args: Args, ground: Ground
) -> np.ndarray:
    """Columns and rows of a coarse grid made wider or narrower."""
    height, width = pixels.shape[:2]
    cells = int(args["cells"])
    maps = []
    for length in (width, height):
        steps = [
            1 + rng.uniform(-args["stretch"], args["stretch"]) for _ in range(cells)
        ]
        knots = np.concatenate([[0.0], np.cumsum(steps)])
        even = np.linspace(0, length - 1, cells + 1)
        maps.append(
            np.interp(np.arange(length), even, knots / knots[-1] * (length - 1))
        )
    x = np.tile(maps[0].astype(np.float32), (height, 1))
    y = np.tile(maps[1].astype(np.float32)[:, None], (1, width))
    return cv2.remap(pixels, x, y, cv2.INTER_LINEAR, borderValue=fill_of(ground))


def _on_lightness(
    pixels: np.ndarray, act: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """`act` on the grey levels; colours keep their hue."""
    if pixels.ndim == 2:
        return act(pixels)
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
    lab[:, :, 0] = act(np.ascontiguousarray(lab[:, :, 0]))
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def _clahe(pixels: np.ndarray, rng: random.Random, args: Args, _: Ground) -> np.ndarray:
    """Local contrast; paper at the top of the scale is put back to white."""
    clip, tiles = rng.uniform(1, args["clip"]), int(args["tiles"])
    made = _on_lightness(pixels, cv2.createCLAHE(clip, (tiles, tiles)).apply)
    made[pixels >= 250] = 255
    return made


def _equalise(
    pixels: np.ndarray, rng: random.Random, args: Args, _: Ground
) -> np.ndarray:
    return _on_lightness(pixels, cv2.equalizeHist)


def _canny(pixels: np.ndarray, rng: random.Random, args: Args, _: Ground) -> np.ndarray:
    """Edges in black on white; both sides of a stroke become a line."""
    edges = cv2.Canny(pixels, args["threshold"] / 2, args["threshold"])
    return _like(255 - edges, pixels)


def _sobel(pixels: np.ndarray, rng: random.Random, args: Args, _: Ground) -> np.ndarray:
    """Gradient strength, dark on white."""
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    along, down = (cv2.Sobel(grey, cv2.CV_32F, *way) for way in ((1, 0), (0, 1)))
    strength = args["gain"] * cv2.magnitude(along, down) / 4
    return _like((255 - np.minimum(strength, 255)).astype(np.uint8), pixels)


def _like(grey: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return grey if pixels.ndim == 2 else cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ."


def _write(
    pixels: np.ndarray, rng: random.Random, size: float, grey: int
) -> np.ndarray:
    """A short random line of letters somewhere on the picture."""
    made = np.ascontiguousarray(pixels).copy()
    height, width = pixels.shape[:2]
    text = "".join(rng.choice(_LETTERS) for _ in range(rng.randint(4, 12)))
    scale = max(0.2, size * height / 22)
    at = (rng.randint(0, width // 2), rng.randint(height // 8, height))
    ink = (grey,) * (1 if pixels.ndim == 2 else 3)
    font = rng.choice((cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX_SMALL))
    cv2.putText(made, text, at, font, scale, ink, 1, cv2.LINE_AA)
    return made


def _lettering(
    pixels: np.ndarray, rng: random.Random, args: Args, _: Ground
) -> np.ndarray:
    return _write(pixels, rng, args["size"], rng.randint(0, 90))


def _watermark(
    pixels: np.ndarray, rng: random.Random, args: Args, _: Ground
) -> np.ndarray:
    """Faint letters in rows over the whole picture, on paper and drawing alike."""
    height, width = pixels.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    word = "".join(rng.choice(_LETTERS) for _ in range(rng.randint(5, 9)))
    scale = max(0.2, height / 260)
    step = max(8, height // 4)
    for row, top in enumerate(range(step // 2, height + step, step)):
        left = -(row % 2) * step + rng.randint(-4, 4)
        text = (word + "   ") * 4
        cv2.putText(mask, text, (left, top), 0, scale, 255, 1, cv2.LINE_AA)
    veil = mask.astype(np.float32) / 255 * args["opacity"]
    veil = veil if pixels.ndim == 2 else veil[:, :, None]
    return (pixels * (1 - veil) + 128 * veil).astype(np.uint8)


def _rand_augment(
    pixels: np.ndarray, rng: random.Random, args: Args, ground: Ground
) -> np.ndarray:
    from torchvision.transforms import RandAugment

    number, strength = int(args["number"]), int(args["strength"])
    policy = RandAugment(number, strength, fill=_as_list(ground))
    return _by_torch(pixels, rng, policy)


def _auto_augment(
    pixels: np.ndarray, rng: random.Random, args: Args, ground: Ground
) -> np.ndarray:
    from torchvision.transforms import AutoAugment

    return _by_torch(pixels, rng, AutoAugment(fill=_as_list(ground)))


def _as_list(ground: Ground) -> list[float]:
    return [float(g) for g in (ground if isinstance(ground, tuple) else (ground,))]


def _by_torch(pixels: np.ndarray, rng: random.Random, policy: Any) -> np.ndarray:
    """Torchvision draws from torch's one generator: seed it, then put it back."""
    import torch

    state = torch.get_rng_state()
    torch.manual_seed(rng.getrandbits(63))
    try:
        grey = pixels.ndim == 2
        planes = pixels[None] if grey else pixels.transpose(2, 0, 1)
        made = policy(torch.from_numpy(np.ascontiguousarray(planes))).numpy()
    finally:
        torch.set_rng_state(state)
    return np.ascontiguousarray(made[0] if grey else made.transpose(1, 2, 0))


def fill_of(ground: Ground) -> tuple[float, ...]:
    """The paper's colour as OpenCV takes it."""
    return (ground,) * 4 if isinstance(ground, int) else (*ground, 255)


# --- the catalogue --------------------------------------------------------------

# paints that do the same to each channel; moves and tones all do
CHANNEL_WISE = frozenset(
    {"thicker", "thinner", "closing", "boxes", "blur", "motion_blur", "elastic", "grid"}
)

KINDS: dict[str, Kind] = {
    "flip": Kind("mirror left and right", "move", _flip, 0.5, {}),
    "upside_down": Kind("mirror top and bottom", "move", _upside_down, 0.5, {}),
    "quarter_turn": Kind("turn by 90, 180 or 270°", "move", _quarter_turn, 0.5, {}),
    "rotate": Kind(
        "rotate about the centre",
        "move",
        _rotate,
        0.7,
        {"degrees": Dial(5, 15, 45, 0, 180, "largest angle, degrees")},
    ),
    "affine": Kind(
        "scale, shift, rotate and shear at once",
        "move",
        _affine,
        0.8,
        {
            "scale": Dial(0.05, 0.15, 0.4, 0, 0.9, "largest change of size, share"),
            "shift": Dial(0.03, 0.08, 0.2, 0, 0.5, "largest shift, share of the side"),
            "degrees": Dial(5, 15, 45, 0, 180, "largest angle, degrees"),
            "shear": Dial(3, 8, 25, 0, 60, "largest shear, degrees"),
        },
    ),
    "brightness": Kind(
        "brightness and contrast, the paper's too",
        "tone",
        _brightness,
        0.5,
        {
            "brightness": Dial(0.05, 0.2, 0.4, 0, 1, "largest shift, share of white"),
            "contrast": Dial(0.05, 0.2, 0.5, 0, 1, "largest change, share"),
        },
    ),
    "ink": Kind(
        "fainter or darker ink on unchanged white",
        "tone",
        _ink,
        0.5,
        {"strength": Dial(0.15, 0.4, 0.8, 0, 1, "largest change, share")},
    ),
    "invert": Kind("the negative", "tone", _invert, 0.2, {}),
    "thicker": Kind(
        "thicker lines",
        "paint",
        _thicker,
        0.5,
        {"pixels": Dial(2, 3, 5, 2, 25, "largest brush, pixels")},
    ),
    "thinner": Kind(
        "thinner lines",
        "paint",
        _thinner,
        0.5,
        {"pixels": Dial(2, 2, 3, 2, 25, "largest brush, pixels")},
    ),
    "closing": Kind(
        "gaps in lines closed",
        "paint",
        _closing,
        0.5,
        {"pixels": Dial(2, 3, 7, 2, 25, "brush, pixels")},
    ),
    "boxes": Kind(
        "boxes of paper over the drawing",
        "paint",
        _boxes,
        0.5,
        {
            "count": Dial(1, 4, 8, 1, 64, "most boxes"),
            "size": Dial(0.1, 0.25, 0.4, 0.08, 1, "largest side, share"),
        },
    ),
    "noise": Kind(
        "Gaussian grain",
        "paint",
        _noise,
        0.5,
        {"std": Dial(0.03, 0.1, 0.25, 0, 1, "largest deviation, share of white")},
    ),
    "blur": Kind(
        "Gaussian blur",
        "paint",
        _blur,
        0.5,
        {"sigma": Dial(0.6, 1.2, 3, 0.3, 50, "largest deviation, pixels")},
    ),
    "motion_blur": Kind(
        "blur along a line",
        "paint",
        _motion_blur,
        0.5,
        {"pixels": Dial(3, 5, 11, 3, 63, "longest line, pixels")},
    ),
    "elastic": Kind(
        "lines bent smoothly",
        "paint",
        _elastic,
        0.4,
        {
            "shift": Dial(0.02, 0.05, 0.12, 0, 0.5, "largest shift, share of the side"),
            "waves": Dial(5, 7, 9, 2, 64, "bends along a side"),
        },
    ),
    "grid": Kind(
        "columns and rows stretched",
        "paint",
        _grid,
        0.4,
        {
            "stretch": Dial(0.15, 0.35, 0.8, 0, 0.95, "largest change, share"),
            "cells": Dial(4, 5, 6, 1, 64, "cells along a side"),
        },
    ),
    "clahe": Kind(
        "local contrast evened out",
        "paint",
        _clahe,
        0.5,
        {
            "clip": Dial(1.5, 3, 8, 1, 100, "clip limit"),
            "tiles": Dial(8, 8, 8, 1, 64, "tiles along a side"),
        },
    ),
    "equalise": Kind("histogram made flat", "paint", _equalise, 0.5, {}),
    "canny": Kind(
        "edges by Canny",
        "paint",
        _canny,
        1.0,
        {"threshold": Dial(100, 200, 400, 1, 2000, "upper threshold, grey levels")},
    ),
    "sobel": Kind(
        "edges by Sobel",
        "paint",
        _sobel,
        1.0,
        {"gain": Dial(0.5, 1, 2, 0.1, 10, "contrast of the edges")},
    ),
    "lettering": Kind(
        "a line of letters added",
        "paint",
        _lettering,
        0.3,
        {"size": Dial(0.05, 0.08, 0.2, 0.02, 0.5, "height, share of the side")},
    ),
    "watermark": Kind(
        "faint letters over everything",
        "paint",
        _watermark,
        0.3,
        {"opacity": Dial(0.1, 0.25, 0.6, 0, 1, "of the letters")},
    ),
    "rand_augment": Kind(
        "torchvision's RandAugment",
        "paint",
        _rand_augment,
        1.0,
        {
            "number": Dial(1, 2, 3, 1, 14, "operations in a row"),
            "strength": Dial(4, 9, 20, 0, 30, "magnitude"),
        },
    ),
    "auto_augment": Kind(
        "torchvision's AutoAugment, ImageNet policy",
        "paint",
        _auto_augment,
        1.0,
        {},
    ),
}
