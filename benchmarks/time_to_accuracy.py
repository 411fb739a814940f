"""Seconds until a held-out accuracy: ours against the fine-tuning users would write.

Run: python benchmarks/time_to_accuracy.py [--data DIR] [--target 0.75] [--epochs 8]
The same weights, the same folds (one a round), the same picture size; each side plans
for all its epochs and is stopped where it reaches the target. Ours is what
params/03_train/cpu.yaml does. The peers read every file
every epoch through Pillow, as their tutorials do: `timm style` is timm's own
transforms and loader with AdamW and a cosine over all weights; `fastai style` trains
the new classifier for an epoch, then everything by one cycle with lower rates for
earlier layers. Scoring the held-out fold is not counted for the peers; for us it is,
and so are the cache and the probe of the machine. A side that never reaches the target
gets the time of its whole training; how often it did is told.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import table
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn
from torch.utils.data import DataLoader, Dataset

from sketchlib import workspace
from sketchlib.data import cache, manifest
from sketchlib.training import compute, heads, loop, models
from sketchlib.training import folds as fold_runs
from sketchlib.workbook import parameters, session

MODEL = "tf_efficientnet_lite0"
SIDE_PX, BATCH = 112, 32
Curve = list[tuple[float, float]]  # (seconds of training so far, accuracy)
Style = Callable[..., Iterator[tuple[float, float]]]


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


class Reached(Exception):
    """The target is reached: nobody needs the rest of the epochs."""


@dataclass(frozen=True)
class Round:
    """What all sides share: rows, folds, the one held out, epochs and target."""

    rows: pd.DataFrame
    folds: pd.DataFrame
    data_dir: Path
    held: int
    epochs: int
    target: float


def ours(asked: Round) -> Curve:
    """From the files on: cache, probe of the machine, start of the head, training."""
    curve: Curve = []

    def follow(row: dict[str, float]) -> None:
        curve.append((time.perf_counter() - started, row["valid_accuracy"]))
        if row["valid_accuracy"] >= asked.target:
            raise Reached

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        task = make_task(asked, Path(folder))
        with contextlib.suppress(Reached):
            fold_runs.train_fold(task, asked.held, follow)
    return curve


def make_task(asked: Round, folder: Path) -> fold_runs.Task:
    """The task of params/03_train/cpu.yaml at the size that all use."""
    file = workspace.repo_root() / "params" / "03_train" / "cpu.yaml"
    values = session.read_defaults("03_train") | parameters.read_overrides(file)
    values |= {"model": MODEL, "side_px": SIDE_PX, "epochs": asked.epochs}
    network = workspace.pick(fold_runs.Network, values)
    recipe = workspace.pick(loop.Recipe, values)
    geometry = workspace.pick(cache.Geometry, values)
    pixels = cache.open_pixels(asked.rows, asked.data_dir, geometry, folder)
    way = compute.choose_compute(
        network.outline(asked.rows["label"].nunique(), recipe),
        (BATCH, 1, SIDE_PX),
        precision="auto",
        layout="auto",
        norm=recipe.norm,
        remember=folder / "compute.json",
    )
    return fold_runs.Task(
        *(asked.rows, asked.folds, pixels, network, recipe, way, []),
        run_dir=folder,
        cache_dir=folder,
        workers=0,
        fresh=True,
    )


def peer(style: Style, asked: Round) -> Curve:
    """The curve of a style; reading files is part of its epochs."""
    rows, folds = asked.rows, asked.folds
    held = set(folds.loc[folds["fold"] == asked.held, "image_id"])
    train = rows[rows["image_id"].isin(set(folds["image_id"]) - held)]
    valid = rows[rows["image_id"].isin(held)]
    model = models.make_model(
        *(MODEL, rows["label"].nunique(), "auto"),
        drop_rate=0.2,
        drop_path_rate=0.0,
        side_px=SIDE_PX,
    )
    curve, total = [], 0.0
    loaders = make_loaders(train, valid, asked.data_dir)
    for seconds, accuracy in style(model, loaders, asked.epochs):
        total += seconds
        curve.append((total, accuracy))
        if accuracy >= asked.target:
            break
    return curve


def reach(curve: Curve, target: float) -> tuple[float, bool]:
    """(seconds to the target, or to the end, and whether it was reached)."""
    return curve[-1][0], curve[-1][1] >= target


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--data", type=Path, default=workspace.repo_root() / "data/demo")
    given.add_argument("--runs", type=Path, default=workspace.repo_root() / "runs")
    given.add_argument("--target", type=float, default=0.75)
    given.add_argument("--epochs", type=int, default=12)
    given.add_argument("--rounds", type=int, default=3)
    options = given.parse_args()
    listed = options.runs / "audit" / "folds.csv"
    if not listed.exists():
        raise SystemExit(f"{listed} is missing; `make demo` writes it")
    rows, folds = manifest.read_manifest(options.data), pd.read_csv(listed)
    readable = audit_readable(options.runs)
    rows = rows[rows["image_id"].isin(readable)].reset_index(drop=True)
    folds = folds[folds["image_id"].isin(readable)]
    sides: dict[str, list[tuple[float, bool]]] = {"ours": []}
    for held in range(options.rounds):
        asked = Round(rows, folds, options.data, held, options.epochs, options.target)
        sides["ours"].append(reach(ours(asked), options.target))
        for style in (timm_style, fastai_style):
            name = style.__name__.replace("_", " ")
            found = reach(peer(style, asked), options.target)
            sides.setdefault(name, []).append(found)
        print({name: found[-1] for name, found in sides.items()}, flush=True)
    mine = sides.pop("ours")
    shown = []
    for name, theirs in sides.items():
        pairs = [(1 / a, 1 / b) for (a, _), (b, _) in zip(mine, theirs, strict=True)]
        row = table.ratio_row(
            f"d. 1 / seconds to {options.target:.0%} on a held-out fold / {name}",
            pairs,
            2.0,
            "1/s",
        )
        row["ours"], row["theirs"] = tell(mine), tell(theirs)
        row["met"] = row["met"] if all(reached for _, reached in mine) else "no"
        shown.append(row)
    table.write_rows("time_to_accuracy", shown)


def audit_readable(runs: Path) -> set[str]:
    """Ids of the pictures the audit could read."""
    findings = pd.read_csv(runs / "audit" / "findings.csv")
    return set(findings.loc[findings["readable"], "image_id"])


def tell(found: Sequence[tuple[float, bool]]) -> str:
    """`31 s (3 of 3)`: the median, and how often the target was reached."""
    middle = statistics.median(seconds for seconds, _ in found)
    return f"{middle:.0f} s ({sum(hit for _, hit in found)} of {len(found)} reached it)"


if __name__ == "__main__":
    main()
