"""Seconds until a held-out accuracy: ours against the fine-tuning users would write.

Run: python benchmarks/time_to_accuracy.py [--data DIR] [--target 0.75] [--epochs 8]
The same weights, the same fold, the same picture size. The peers read every file
every epoch through Pillow, as their tutorials do: `timm style` is timm's own
transforms and loader with AdamW and a cosine over all weights; `fastai style` trains
the new classifier for an epoch, then everything by one cycle with lower rates for
earlier layers. Scoring the held-out fold is not counted for the peers; for us it is,
and so are the cache and the probe of the machine. A side that never reaches the target
gets the time of its whole training, and is marked so.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import table
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn
from torch.utils.data import DataLoader, Dataset
from training import make_recipe

from sketchlib import workspace
from sketchlib.data import cache, manifest
from sketchlib.training import compute, heads, models
from sketchlib.training import folds as fold_runs
from sketchlib.workbook import session

MODEL = "tf_efficientnet_lite0"
SIDE_PX, BATCH = 112, 32
Curve = list[tuple[float, float]]  # (seconds of training so far, accuracy)


class Files(Dataset):
    """Pictures read from their files with a torchvision-like transform."""

    def __init__(self, rows: pd.DataFrame, data_dir: Path, transform: Callable) -> None:
        self.paths = [data_dir / path for path in rows["path"]]
        self.labels = rows["label"].tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = Image.open(self.paths[index]).convert("RGB")
        return self.transform(picture), self.labels[index]


def make_loaders(
    train: pd.DataFrame, valid: pd.DataFrame, data_dir: Path
) -> tuple[DataLoader, DataLoader]:
    stats = {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # the weights' own
    loud = create_transform(
        SIDE_PX, is_training=True, scale=(0.5, 1.0), color_jitter=0.2, **stats
    )
    calm = create_transform(SIDE_PX, is_training=False, crop_pct=1.0, **stats)
    return (
        DataLoader(Files(train, data_dir, loud), BATCH, shuffle=True, drop_last=True),
        DataLoader(Files(valid, data_dir, calm), 2 * BATCH),
    )


def score(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    with torch.inference_mode():
        hits = sum(
            int((model(images).argmax(1) == labels).sum()) for images, labels in loader
        )
    return hits / len(loader.dataset)  # type: ignore[arg-type]


def train_epochs(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    loaders: tuple[DataLoader, DataLoader],
    epochs: int,
) -> Iterator[tuple[float, float]]:
    """(seconds, accuracy) of each epoch, in plain fp32."""
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    for _ in range(epochs):
        started = time.perf_counter()
        model.train()
        for images, labels in loaders[0]:
            loss(model(images), labels).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        yield time.perf_counter() - started, score(model, loaders[1])


def timm_style(
    model: nn.Module, loaders: tuple[DataLoader, DataLoader], epochs: int
) -> Iterator[tuple[float, float]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * len(loaders[0])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    yield from train_epochs(model, optimizer, schedule, loaders, epochs)


def fastai_style(
    model: nn.Module, loaders: tuple[DataLoader, DataLoader], epochs: int
) -> Iterator[tuple[float, float]]:
    name = heads.classifier_name(model)
    head = list(model.get_submodule(str(name)).parameters())
    body = [
        weight for weight in model.parameters() if all(weight is not h for h in head)
    ]
    for weight in body:
        weight.requires_grad_(False)
    yield from one_cycle(model, [head], [2e-3], loaders, 1)
    for weight in body:
        weight.requires_grad_(True)
    early, late = body[: len(body) // 2], body[len(body) // 2 :]
    yield from one_cycle(
        model, [early, late, head], [1e-4, 5e-4, 1e-3], loaders, epochs - 1
    )


def one_cycle(
    model: nn.Module,
    parts: list[list[nn.Parameter]],
    rates: list[float],
    loaders: tuple[DataLoader, DataLoader],
    epochs: int,
) -> Iterator[tuple[float, float]]:
    optimizer = torch.optim.AdamW(
        [{"params": part} for part in parts], lr=rates[0], weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, epochs=epochs, steps_per_epoch=len(loaders[0])
    )
    yield from train_epochs(model, optimizer, schedule, loaders, epochs)


def ours(rows: pd.DataFrame, folds: pd.DataFrame, data_dir: Path, epochs: int) -> Curve:
    """From the files on: cache, probe of the machine, start of the head, training."""
    curve: Curve = []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        geometry = cache.Geometry(SIDE_PX, "ink", "grey", "white")
        pixels = cache.open_pixels(rows, data_dir, geometry, Path(folder))
        asked = session.read_defaults("03_train") | {"model": MODEL, "side_px": SIDE_PX}
        network = workspace.pick(fold_runs.Network, asked)
        recipe = make_recipe(epochs=epochs)
        way = compute.choose_compute(
            network.make(rows["label"].nunique()),
            (BATCH, 1, SIDE_PX),
            precision="auto",
            layout="auto",
            norm=recipe.norm,
            remember=Path(folder) / "compute.json",
        )
        task = fold_runs.Task(
            *(rows, folds, pixels, network, recipe, way, []),
            run_dir=Path(folder),
            cache_dir=Path(folder),
            workers=0,
            fresh=True,
        )
        fold_runs.train_fold(
            task,
            0,
            lambda row: curve.append(
                (time.perf_counter() - started, row["valid_accuracy"])
            ),
        )
    return curve


def peer(
    style: Callable[..., Iterator[tuple[float, float]]],
    rows: pd.DataFrame,
    folds: pd.DataFrame,
    data_dir: Path,
    epochs: int,
) -> Curve:
    """The curve of a style; reading files is part of its epochs."""
    held = set(folds.loc[folds["fold"] == 0, "image_id"])
    train = rows[rows["image_id"].isin(set(folds["image_id"]) - held)]
    valid = rows[rows["image_id"].isin(held)]
    model = models.make_model(
        *(MODEL, rows["label"].nunique(), "auto"),
        drop_rate=0.2,
        drop_path_rate=0.0,
        side_px=SIDE_PX,
    )
    curve, total = [], 0.0
    for seconds, accuracy in style(model, make_loaders(train, valid, data_dir), epochs):
        total += seconds
        curve.append((total, accuracy))
    return curve


def reach(curve: Curve, target: float) -> tuple[float, bool]:
    """(seconds to the target, or to the end, and whether it was reached)."""
    for seconds, accuracy in curve:
        if accuracy >= target:
            return seconds, True
    return curve[-1][0], False


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--data", type=Path, default=workspace.repo_root() / "data/demo")
    asked.add_argument("--runs", type=Path, default=workspace.repo_root() / "runs")
    asked.add_argument("--target", type=float, default=0.75)
    asked.add_argument("--epochs", type=int, default=8)
    options = asked.parse_args()
    listed = options.runs / "audit" / "folds.csv"
    if not listed.exists():
        raise SystemExit(f"{listed} is missing; `make demo` writes it")
    rows, folds = manifest.read_manifest(options.data), pd.read_csv(listed)
    readable = audit_readable(options.runs)
    rows = rows[rows["image_id"].isin(readable)].reset_index(drop=True)
    folds = folds[folds["image_id"].isin(readable)]
    curves = {
        style.__name__.replace("_", " "): peer(
            style, rows, folds, options.data, options.epochs
        )
        for style in (timm_style, fastai_style)
    }
    curve = ours(rows, folds, options.data, options.epochs)
    seconds, reached = reach(curve, options.target)
    found = []
    for name, other in curves.items():
        theirs, theirs_reached = reach(other, options.target)
        row = table.ratio_row(
            f"d. 1 / seconds to {options.target:.0%} on a held-out fold / {name}",
            [(1 / seconds, 1 / theirs)],
            2.0,
            "1/s",
        )
        best = max(accuracy for _, accuracy in other)
        row["ours"] = tell(seconds, reached, max(accuracy for _, accuracy in curve))
        row["theirs"] = tell(theirs, theirs_reached, best)
        row["spread"] = "one run"
        row["met"] = row["met"] if reached else "no"
        found.append(row)
    table.write_rows("time_to_accuracy", found)


def audit_readable(runs: Path) -> set[str]:
    """Ids of the pictures the audit could read."""
    findings = pd.read_csv(runs / "audit" / "findings.csv")
    return set(findings.loc[findings["readable"], "image_id"])


def tell(seconds: float, reached: bool, best: float) -> str:
    return f"{seconds:.0f} s{'' if reached else ', not reached'} (best {best:.1%})"


if __name__ == "__main__":
    main()
