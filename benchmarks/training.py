"""Training speed: against plain PyTorch and timm's defaults, and against pure compute.

Run: python benchmarks/training.py [--rounds 3] [--steps 8]
Random weights and drawn pictures: nothing is read but the code. The sides take turns
in every round, so that a machine that drifts drifts for all of them.
"""

import argparse
import dataclasses
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import table
import timm
import torch
from torch import nn

from sketchlib import workspace
from sketchlib.data import cache
from sketchlib.training import compute, datasets, kernels, loop, optim
from sketchlib.workbook import session

MODEL = "tf_efficientnet_lite0"
CLASSES, SIDE_PX, BATCH = 86, 128, 32


def make_step(
    model: nn.Module,
    way: compute.Compute,
    images: torch.Tensor,
    recipe: loop.Recipe | None = None,
) -> Callable[[], None]:
    """A training step on tensors already in memory: AdamW, or the recipe's update."""
    parameters = list(model.parameters())
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    if recipe:
        optimizer = optim.make_optimizer(model, recipe, recipe.lr)
    clip_norm = recipe.clip_norm if recipe else 0.0
    targets = torch.arange(len(images)) % CLASSES
    inputs = images.contiguous(memory_format=way.memory_format)

    def step() -> None:
        with way.autocast():
            scores = model(inputs)
        nn.functional.cross_entropy(scores.float(), targets).backward()
        if clip_norm:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_peers(images: torch.Tensor) -> dict[str, Callable[[], None]]:
    """Plain fp32 as PyTorch's tutorials have it, and timm's train script with AMP."""
    ways = {
        "plain fp32 PyTorch": compute.Compute("cpu", "fp32", "nchw", 0.0),
        "timm, --amp bf16 --channels-last": compute.Compute(
            "cpu", "bf16", "channels_last", 0.0
        ),
    }
    steps = {}
    for name, way in ways.items():
        model = timm.create_model(MODEL, num_classes=CLASSES)
        steps[name] = make_step(way.place(model).train(), way, images)
    return steps


def measure_step(step: Callable[[], None], steps: int) -> float:
    """Pictures a second."""
    step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * BATCH / (time.perf_counter() - started)


def make_examples(pictures: int, classes: int) -> datasets.Examples:
    """Scribbles in memory, as the cache would hold them."""
    rng = np.random.default_rng(0)
    pixels = np.full((pictures, SIDE_PX, SIDE_PX), 255, np.uint8)
    for picture in pixels:
        rows = rng.integers(8, SIDE_PX - 8, (40, 2))
        picture[rows[:, 0], rows[:, 1]] = 0
    ids = np.array([f"train/{number}" for number in range(pictures)])
    kept = cache.PixelCache(
        pixels,
        ids,
        np.ones(pictures, bool),
        cache.Geometry(SIDE_PX, "ink", "grey", "white"),
    )
    return datasets.Examples(
        kept, np.arange(pictures), np.arange(pictures, dtype=np.int64) % classes
    )


def make_recipe(**changes: object) -> loop.Recipe:
    """The notebook's own defaults, with `changes`."""
    values = session.read_defaults("03_train") | {"batch_size": BATCH} | changes
    return workspace.pick(loop.Recipe, values)


def measure_shares(
    way: compute.Compute, pure: Callable[[], None], epochs: int, steps: int
) -> list[float]:
    """Time of epochs of `fit` over that of as many pure steps, sorted.

    A pure step goes before or after each of the loop's own, in turns: the one that
    comes second is faster by two or three hundredths. What is left of an epoch is
    augmentation, loader, schedule and bookkeeping. An epoch before them warms up what
    is made once in a run.
    """
    examples = make_examples(steps * BATCH, CLASSES)
    nothing = dataclasses.replace(
        examples, rows=examples.rows[:0], labels=examples.labels[:0]
    )
    model = timm.create_model(MODEL, num_classes=CLASSES)
    recipe = make_recipe(epochs=epochs + 1, norm="folded", lr=1e-4)
    update, spent = loop._update, []

    def take_pure() -> None:
        began = time.perf_counter()
        pure()
        spent.append(time.perf_counter() - began)

    def take_both(*asked: Any) -> float:
        pure_first = len(spent) % 2 == 1
        if pure_first:
            take_pure()
        loss = update(*asked)
        if not pure_first:
            take_pure()
        return loss

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(loop, "_update", take_both),
    ):
        history = loop.fit(
            model, examples, nothing, recipe, way=way, fold_dir=Path(folder)
        )
    whole = steps * BATCH / history["images_per_second"].to_numpy()[1:]
    alone = np.reshape(spent, (epochs + 1, steps)).sum(axis=1)[1:]
    return sorted(((whole - alone) / alone).tolist())


def measure_memory(pictures: int, classes: int) -> float:
    """Peak gigabytes of a process that trains on `pictures` of `classes` classes."""
    code = f"import training; training.train_once({pictures}, {classes})"
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1]) / 2**20  # ru_maxrss is in KiB


def train_once(pictures: int, classes: int) -> None:
    """A short epoch on the first pictures; prints the peak memory in KiB."""
    examples = make_examples(pictures, classes)
    few = dataclasses.replace(
        examples, rows=examples.rows[:320], labels=examples.labels[:320]
    )
    model = timm.create_model(MODEL, num_classes=classes)
    way = compute.Compute("cpu", "bf16", "channels_last", 0.0, "blocks")
    kernels.keep_memory()
    recipe = make_recipe(epochs=1, norm="folded", lr=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        loop.fit(model, few, few, recipe, way=way, fold_dir=Path(folder))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--steps", type=int, default=8)
    options = asked.parse_args()
    images = torch.randn(BATCH, 3, SIDE_PX, SIDE_PX)
    peers = make_peers(images)  # before the allocator is told to keep memory
    rates: dict[str, list[float]] = {name: [] for name in [*peers, "ours"]}
    with tempfile.TemporaryDirectory() as folder:
        model = timm.create_model(MODEL, num_classes=CLASSES)
        way = compute.choose_compute(
            model,
            (BATCH, 1, SIDE_PX),
            precision="auto",
            layout="auto",
            norm="folded",
            remember=Path(folder) / "compute.json",
        )
    kernels.Folded(model, kernels.make_sample(SIDE_PX))
    recipe = make_recipe(norm="folded", lr=1e-4)
    ours = make_step(way.place(model).train(), way, images, recipe)
    for _ in range(options.rounds):
        for name, step in peers.items():
            rates[name].append(measure_step(step, options.steps))
        rates["ours"].append(measure_step(ours, options.steps))
    rows = [
        table.ratio_row(
            f"c. training {MODEL} {SIDE_PX} px ({way}) / {name}",
            list(zip(rates["ours"], rates[name], strict=True)),
            1.7 if "plain" in name else 0.0,
            "pictures/s",
        )
        for name in peers
    ]
    share = measure_shares(way, ours, 3 * options.rounds, 2 * options.steps)
    what = "b. epoch time / pure compute on tensors in memory"
    rows.append(table.limit_row(what, share, "x", 1.05))
    memory = [measure_memory(15_021, 500) for _ in range(options.rounds)]
    what = "i. memory of training on 500 classes, 15,021 pictures"
    rows.append(table.limit_row(what, memory, "GB", 3.0, told=max))
    table.write_rows("training", rows)


if __name__ == "__main__":
    main()
