"""Pictures per second and core: the cache and its recipes against three pipelines.

The same files, the same recipe (flip, rotation by 15°, brightness and contrast), the
same batches of normalised floats, through the same DataLoader in one process with one
thread: (i) OpenCV in colour, then albumentations, as the reports did; (ii) Pillow and
torchvision; (iii) Pillow and timm's transforms. Rounds alternate; a ratio is taken
within a round. Seconds are processor seconds, so that a busy machine changes little.

    python benchmarks/augment.py FOLDER --side 128 224
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import timm.data
import torch
import torchvision.transforms as T
from albumentations.pytorch import ToTensorV2
from PIL import Image
from table import ratio_row, write_rows
from torch.utils.data import DataLoader, Dataset

from sketchlib.data import cache, images, manifest
from sketchlib.training import datasets, kernels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RECIPE = "flip_rotate_light"
BATCH = 64
GOALS = {"OpenCV": 5.0, "Pillow": 10.0}


class Files(Dataset):
    """A pipeline from a path to a normalised tensor."""

    def __init__(self, paths: list[str], load: Callable[[str], torch.Tensor]) -> None:
        self.paths = paths
        self.load = load

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.load(self.paths[row])


def make_reports(side: int) -> Callable[[str], torch.Tensor]:
    """OpenCV in colour → albumentations → normalise."""
    steps = [
        A.Resize(side, side),
        A.HorizontalFlip(p=0.5),
        A.Rotate(limit=15, fill=255, p=0.7),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.5),
        A.Normalize(MEAN, STD),
        ToTensorV2(),
    ]
    pipeline = A.Compose(steps)

    def load(path: str) -> torch.Tensor:
        pixels = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
        return pipeline(image=pixels)["image"]

    return load


def _rotation() -> T.RandomApply:
    turn = T.RandomRotation(15, T.InterpolationMode.BILINEAR, fill=255)
    return T.RandomApply([turn], 0.7)


def make_torchvision(side: int) -> Callable[[str], torch.Tensor]:
    """Pillow → torchvision."""
    pipeline = T.Compose(
        [
            T.Resize((side, side)),
            T.RandomHorizontalFlip(0.5),
            _rotation(),
            T.RandomApply([T.ColorJitter(brightness=0.2, contrast=0.2)], 0.5),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )
    return lambda path: pipeline(Image.open(path).convert("RGB"))


def make_timm(side: int) -> Callable[[str], torch.Tensor]:
    """Pillow → timm's training transforms, crop off, the rotation put in."""
    pipeline = timm.data.create_transform(
        side,
        is_training=True,
        scale=(1.0, 1.0),
        ratio=(1.0, 1.0),
        hflip=0.5,
        color_jitter=(0.2, 0.2, 0.0),
        color_jitter_prob=0.5,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
    )
    pipeline.transforms.insert(2, _rotation())
    return lambda path: pipeline(Image.open(path).convert("RGB"))


def time_pipeline(loader: DataLoader, finish: Callable | None = None) -> float:
    """Processor seconds a picture over one pass."""
    seen, started = 0, time.process_time()
    for batch in loader:
        inputs = finish(batch[0]) if finish else batch
        assert inputs.dtype == torch.float32 and inputs.shape[1] == 3
        seen += len(inputs)
    return (time.process_time() - started) / seen


def open_ours(
    paths: list[str], folder: Path, geometry: cache.Geometry, cache_dir: Path
) -> tuple[DataLoader, float]:
    """A loader from the cache, and the seconds a picture that filling it took."""
    table = pd.DataFrame({"image_id": paths, "path": paths})
    started = time.process_time()
    pixels = cache.open_pixels(table, folder, geometry, cache_dir)
    filled = (time.process_time() - started) / len(paths)
    rows = np.arange(len(paths))
    examples = datasets.Examples(pixels, rows, np.zeros(len(rows), np.int64))
    dataset = datasets.SketchDataset(examples, RECIPE, seed=0)
    loader = datasets.make_loader(dataset, BATCH, workers=0, training=True)
    return loader, filled


def compare(paths: list[str], folder: Path, side: int, rounds: int) -> pd.DataFrame:
    """Milliseconds a picture and ratio to ours of every pipeline, round by round."""
    full = [str(folder / path) for path in paths]
    peers = {
        "reports: OpenCV colour, albumentations": make_reports(side),
        "torchvision: Pillow": make_torchvision(side),
        "timm: Pillow": make_timm(side),
    }
    loaders = {
        name: DataLoader(Files(full, load), batch_size=BATCH)
        for name, load in peers.items()
    }
    mean, std = torch.tensor(MEAN), torch.tensor(STD)

    def normalise(batch: torch.Tensor) -> torch.Tensor:
        return datasets.to_input(batch, mean, std)

    rows = []
    with tempfile.TemporaryDirectory() as cache_dir:
        for channels in ("grey", "colour"):
            geometry = cache.Geometry(side, "stretch", channels, "keep")
            ours, filled = open_ours(paths, folder, geometry, Path(cache_dir))
            print(f"{side} px, {channels}: filled in {1e3 * filled:.2f} ms a picture")
            for number in range(rounds + 1):
                ours.batch_sampler.sampler.epoch = number
                own = time_pipeline(ours, normalise)
                for name, loader in loaders.items():
                    spent = time_pipeline(loader)
                    rows.append((side, channels, number, name, own, spent))
    columns = ["side", "channels", "round", "pipeline", "ours", "theirs"]
    found = pd.DataFrame(rows, columns=columns)
    found["ratio"] = found["theirs"] / found["ours"]
    return found[found["round"] > 0]  # the first round fills the disk cache


def summarise(found: pd.DataFrame) -> pd.DataFrame:
    """Medians, and the range of the ratios over rounds."""
    parts = found.groupby(["side", "channels", "pipeline"], sort=False)
    return pd.DataFrame(
        {
            "ours_per_s": (1 / parts["ours"].median()).round(),
            "theirs_per_s": (1 / parts["theirs"].median()).round(),
            "ratio": parts["ratio"].median().round(1),
            "least": parts["ratio"].min().round(1),
            "most": parts["ratio"].max().round(1),
        }
    ).reset_index()


def read_paths(folder: Path, pictures: int) -> list[str]:
    """Names of up to `pictures` readable pictures below `folder`."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in manifest.PICTURE_SUFFIXES:
            try:
                images.read_picture(path)
            except images.PictureError:
                continue  # the peers stop at such a file
            found.append(str(path.relative_to(folder)))
    step = max(1, len(found) // pictures)
    return found[::step][:pictures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="pictures")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--side", type=int, nargs="+", default=[128])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    kernels.keep_memory()  # as training does on a CPU; it serves the peers as well
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    paths = read_paths(asked.folder, asked.pictures)
    print(
        f"{len(paths)} pictures, {platform.machine()}, python "
        f"{platform.python_version()}, torch {torch.__version__}, cv2 {cv2.__version__}"
    )
    rows = []
    for side in asked.side:
        found = compare(paths, asked.folder, side, asked.rounds)
        print(summarise(found).to_string(index=False))
        rows += make_rows(found)
    write_rows("augment", rows)


def make_rows(found: pd.DataFrame) -> list[dict[str, object]]:
    """A line of the common table for every side, channel and peer."""
    rows = []
    for key, part in found.groupby(["side", "channels", "pipeline"], sort=False):
        side, channels, peer = key
        pairs = [
            (1 / ours, 1 / theirs)
            for ours, theirs in zip(part["ours"], part["theirs"], strict=True)
        ]
        what = f"a. loading and augmenting {side} px {channels} / {peer}"
        goal = GOALS["OpenCV" if "OpenCV" in str(peer) else "Pillow"]
        rows.append(ratio_row(what, pairs, goal, "pictures/s and core"))
    return rows


if __name__ == "__main__":
    main()
