"""A tiny world of line drawings, made anew for the tests: nothing is downloaded."""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts jobs with &,
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and children inherit it

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

CLASSES = ("circle", "cross", "square", "stairs")
EACH = 12
SIDE = 96


def draw_shape(name: str, rng: np.random.Generator) -> np.ndarray:
    """(H, W) uint8: a dark line drawing of the class on white paper."""
    canvas = np.full((SIDE, SIDE), 255, np.uint8)
    centre = (SIDE // 2 + rng.integers(-6, 7), SIDE // 2 + rng.integers(-6, 7))
    size, width = int(rng.integers(20, 34)), int(rng.integers(2, 5))
    x, y = map(int, centre)
    if name == "circle":
        cv2.circle(canvas, (x, y), size, 0, width)
    elif name == "cross":
        cv2.line(canvas, (x - size, y - size), (x + size, y + size), 0, width)
        cv2.line(canvas, (x - size, y + size), (x + size, y - size), 0, width)
    elif name == "square":
        cv2.rectangle(canvas, (x - size, y - size), (x + size, y + size), 0, width)
    else:
        steps = [(x - size, y + size)]
        for step in range(4):
            left = x - size + step * size // 2
            top = y + size - (step + 1) * size // 2
            steps += [(left, top), (left + size // 2, top)]
        cv2.polylines(canvas, [np.array(steps, np.int32)], False, 0, width)
    return canvas


def write_world(folder: Path, each: int = EACH, seed: int = 7) -> Path:
    """The competition's layout: 4 classes, a blank, a corrupt file and two copies."""
    rng = np.random.default_rng(seed)
    rows = []
    for label, name in enumerate(CLASSES):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(each):
            path = f"{name}/sketch_{number}.JPEG"
            cv2.imwrite(str(folder / "train" / path), draw_shape(name, rng))
            rows.append((name, path, label))
    first = folder / "train" / "circle" / "sketch_0.JPEG"
    (folder / "train" / "circle" / "sketch_1.JPEG").write_bytes(first.read_bytes())
    stairs = folder / "train" / "stairs"
    flipped = cv2.imread(str(stairs / "sketch_0.JPEG"), 0)[:, ::-1]
    cv2.imwrite(str(stairs / "sketch_1.JPEG"), np.ascontiguousarray(flipped))
    cv2.imwrite(
        str(folder / "train" / "cross" / "sketch_2.JPEG"),
        np.full((SIDE, SIDE), 255, np.uint8),
    )
    broken = folder / "train" / "square" / "sketch_3.JPEG"
    broken.write_bytes(broken.read_bytes()[:300])
    (folder / "test").mkdir()
    for number in range(8):
        drawing = draw_shape(CLASSES[number % 4], rng)
        cv2.imwrite(str(folder / "test" / f"{number}.JPEG"), drawing)
    train = pd.DataFrame(rows, columns=["class_name", "image_path", "target"])
    train.sample(frac=1, random_state=0).to_csv(folder / "train.csv", index=False)
    tests = [f"{number}.JPEG" for number in range(8)]
    pd.DataFrame({"image_path": tests}).to_csv(folder / "test.csv", index=False)
    sample = pd.DataFrame({"ID": range(8), "image_path": tests, "target": 0})
    sample.to_csv(folder / "sample_submission.csv", index=False)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder shared by all tests; never written to."""
    return write_world(tmp_path_factory.mktemp("world") / "data")


@pytest.fixture
def own_world(tmp_path: Path) -> Path:
    """A data folder a test may change."""
    return write_world(tmp_path / "data")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")
