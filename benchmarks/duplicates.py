"""Audit and duplicates on planted copies: recall and precision per kind, seconds.

Run: python benchmarks/duplicates.py [FOLDER] [--pictures N] [--copies SHARE]
FOLDER holds pictures of your own (read only; searched in depth); without it the
drawings are drawn here. Copies of known kinds are planted in a temporary folder.
The time of decoding every file once on all cores, in the same run, is the yardstick.
Pairs of originals that the search reports are counted apart: in a folder of one's
own they may be true copies, in the drawn set they are mistakes.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from sketchlib.data import audit, duplicates, manifest

Alter = Callable[[np.ndarray, np.random.Generator], np.ndarray]
TURNS = ("hflip", "vflip", "rot90", "rot180", "rot270", "transpose", "transverse")


def draw_sketch(rng: np.random.Generator, side_px: int) -> np.ndarray:
    """A random line drawing on white, (S, S) uint8: closed shapes, strokes, dots."""
    paper = np.full((side_px, side_px), 255, np.uint8)
    width = int(rng.integers(1, 4)) * max(1, side_px // 200)
    grey = int(rng.integers(0, 60))
    for _ in range(int(rng.integers(3, 7))):
        points = rng.uniform(0.12, 0.88, (int(rng.integers(3, 8)), 2)) * side_px
        closed = bool(rng.random() < 0.5)
        curve = _smooth(points, closed) if rng.random() < 0.6 else points
        cv2.polylines(
            paper, [curve.round().astype(np.int32)], closed, grey, width, cv2.LINE_AA
        )
    if rng.random() < 0.5:
        centre = rng.uniform(0.3, 0.7, 2) * side_px
        radius = int(rng.uniform(0.04, 0.15) * side_px)
        cv2.circle(paper, centre.astype(int).tolist(), radius, grey, -1, cv2.LINE_AA)
    return paper


def _smooth(points: np.ndarray, closed: bool) -> np.ndarray:
    """(M, 2) points of a Catmull-Rom curve through `points`."""
    padded = np.concatenate([points[-1:], points, points[:2]])
    if not closed:
        padded = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, 12, endpoint=False)[:, None]
    a, b, c, d = (padded[k : len(padded) - 3 + k] for k in range(4))
    parts = [
        0.5
        * (
            2 * q
            + (r - p) * t
            + (2 * p - 5 * q + 4 * r - s) * t**2
            + (3 * q - p - 3 * r + s) * t**3
        )
        for p, q, r, s in zip(a, b, c, d, strict=True)
    ]
    return np.concatenate(parts)


def turn(pixels: np.ndarray, name: str) -> np.ndarray:
    """`pixels` in one of the eight orientations, as `duplicates` names them."""
    return np.ascontiguousarray(duplicates.turn(pixels, name))


def rotate(pixels: np.ndarray, angle_deg: float) -> np.ndarray:
    """Rotated about the centre, corners filled with the paper."""
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle_deg, 1.0)
    return cv2.warpAffine(
        pixels,
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=paper_of(pixels),
    )


def paper_of(pixels: np.ndarray) -> tuple[float, ...]:
    """Median colour of the outermost pixels."""
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(np.atleast_1d(np.median(edge, axis=0)).tolist())


def _crop(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    y, x = rng.uniform(0, 0.1, 2)
    top, left = int(y * height), int(x * width)
    return pixels[top : top + int(0.9 * height), left : left + int(0.9 * width)]


def _margin(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    wide = [int(rng.uniform(0.05, 0.3) * side) for side in pixels.shape[:2] * 2]
    return cv2.copyMakeBorder(
        pixels, *wide, cv2.BORDER_CONSTANT, value=paper_of(pixels)
    )


def _text(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    marked = pixels.copy()
    height, width = pixels.shape[:2]
    words = str(rng.choice(["stock 0712", "(c) sketches", "SAMPLE", "www.draw.ex"]))
    at = (int(rng.uniform(0.02, 0.4) * width), int(rng.uniform(0.9, 0.97) * height))
    ink = tuple(255 - v if v < 128 else 60.0 for v in paper_of(pixels))
    cv2.putText(marked, words, at, 0, width / 500, ink, 1 + width // 400, cv2.LINE_AA)
    return marked


def _weight(pixels: np.ndarray, thicker: bool) -> np.ndarray:
    """Lines wider or narrower by about a third, judged by the ink they keep."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    dark_ink = np.mean(paper_of(pixels)) > 127
    grow = cv2.erode if thicker == dark_ink else cv2.dilate
    height, width = pixels.shape[:2]
    changed = pixels
    for finer in (0.67, 1, 2, 3, 4):  # the kernel in ever smaller pixels
        size = (round(width * finer), round(height * finer))
        large = grow(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC), kernel)
        changed = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
        if 0.6 < _ink(changed) / max(_ink(pixels), 1.0) < 1.6:
            break
    return changed


def _ink(pixels: np.ndarray) -> float:
    return float(np.abs(pixels - np.float32(paper_of(pixels))).sum())


def _brightness(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return cv2.convertScaleAbs(
        pixels, alpha=rng.uniform(0.55, 0.85), beta=rng.uniform(0, 30)
    )


def _resize(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = rng.uniform(0.4, 0.8) if rng.random() < 0.7 else rng.uniform(1.2, 1.6)
    return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _angle(low: float, high: float) -> Alter:
    def alter(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rotate(pixels, rng.choice([-1, 1]) * rng.uniform(low, high))

    return alter


def _turned(name: str) -> Alter:
    return lambda pixels, rng: turn(pixels, name)


def _turned_rotated(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rotate(turn(pixels, "hflip"), rng.uniform(-5, 5))


# kind → how the copy is made; bytes, pixels and recompressed differ in the file only
ALTERATIONS: dict[str, Alter] = {
    "bytes": lambda pixels, rng: pixels,
    "pixels": lambda pixels, rng: pixels,
    "recompressed": lambda pixels, rng: pixels,
    **{name: _turned(name) for name in TURNS},
    "rotated 4-6": _angle(4, 6),
    "rotated 7-10": _angle(7, 10),
    "rotated 11-15": _angle(11, 15),
    "flip + rotated": _turned_rotated,
    "crop": _crop,
    "margin": _margin,
    "brightness": _brightness,
    "resize": _resize,
    "text": _text,
    "thicker": lambda pixels, rng: _weight(pixels, True),
    "thinner": lambda pixels, rng: _weight(pixels, False),
    "inverted": lambda pixels, rng: 255 - pixels,
}


def plant(
    folder: Path, sources: list[np.ndarray], copies: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write `sources` and altered copies of some of them below `folder`.

    Returns:
        The manifest, and the truth: `image_id_a, image_id_b, planted` (a the original).
    """
    rng = np.random.default_rng(seed)
    (folder / "train").mkdir(parents=True)
    names = []
    for number, pixels in enumerate(sources):
        names.append(f"train/{number:06d}.jpg")
        cv2.imwrite(str(folder / names[-1]), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
    chosen = rng.permutation(len(sources))[:copies]
    kinds = list(ALTERATIONS)
    truth = []
    for turn_number, at in enumerate(chosen):
        kind = kinds[turn_number % len(kinds)]
        name = _write_copy(folder, names[at], kind, rng)
        truth.append((names[at], name, kind))
        names.append(name)
    table = pd.DataFrame({"image_id": names, "path": names})
    table["label"], table["class_name"], table["subset"] = 0, "drawing", "train"
    return table, pd.DataFrame(truth, columns=["image_id_a", "image_id_b", "planted"])


def _write_copy(
    folder: Path, original: str, kind: str, rng: np.random.Generator
) -> str:
    data = (folder / original).read_bytes()
    name = original.replace(".jpg", f"-{kind.replace(' ', '')}.jpg")
    if kind == "bytes":
        (folder / name).write_bytes(data)
        return name
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    altered = np.ascontiguousarray(ALTERATIONS[kind](pixels, rng))
    if kind == "pixels":
        name = name.replace(".jpg", ".png")
        cv2.imwrite(str(folder / name), altered)
        return name
    quality = 30 if kind == "recompressed" else int(rng.integers(75, 95))
    cv2.imwrite(str(folder / name), altered, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return name
