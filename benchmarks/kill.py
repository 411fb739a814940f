"""Twenty SIGKILLs at random moments of a training run, and what they cost.

Run: python benchmarks/kill.py [--kills N] [--seed S]
A tiny network trains on drawings made here, in strict mode on the processor, with a
checkpoint after every update. It is killed again and again, started again each time,
and in the end its history, weights and predictions are compared, bit by bit, with a
run nobody killed. Exit code 1 when anything differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
CLASSES, EACH, SIDE_PX, EPOCHS = 4, 16, 32, 12


def write_drawings(folder: Path) -> None:
    """Crosses, boxes, rings and bars in the competition's layout."""
    rng = np.random.default_rng(0)
    rows = []
    for label in range(CLASSES):
        (folder / "train" / str(label)).mkdir(parents=True)
        for number in range(EACH):
            paper = np.full((SIDE_PX, SIDE_PX), 255, np.uint8)
            x, y, size = (int(value) for value in rng.integers(9, 16, 3))
            if label == 0:
                cv2.circle(paper, (x, y), size // 2, 0, 2)
            elif label == 1:
                cv2.rectangle(paper, (x // 2, y // 2), (x + 9, y + 9), 0, 2)
            else:
                end = (x + size, y) if label == 2 else (x, y + size)
                cv2.line(paper, (x, y), end, 0, 2)
            path = f"{label}/{number}.png"
            cv2.imwrite(str(folder / "train" / path), paper)
            rows.append((f"class {label}", path, label))
    table = pd.DataFrame(rows, columns=["class_name", "image_path", "target"])
    table.to_csv(folder / "train.csv", index=False)


def train(folder: Path, run: str) -> None:
    """One fold, from the drawings to written predictions; continues by itself."""
    import torch

    from sketchlib import workspace
    from sketchlib.data import cache, manifest, splits
    from sketchlib.training import compute, folds, loop
    from sketchlib.workbook import session

    torch.set_num_threads(1)
    asked = session.read_defaults("03_train") | _SETTINGS
    table = manifest.read_manifest(folder)
    geometry = cache.Geometry(SIDE_PX, "ink", "grey", "white")
    task = folds.Task(
        table=table,
        folds=splits.make_folds(table, None, 4, seed=0),
        pixels=cache.open_pixels(table, folder, geometry, folder / "cache"),
        network=workspace.pick(folds.Network, asked),
        recipe=workspace.pick(loop.Recipe, asked),
        way=compute.Compute("cpu", "fp32", "nchw", 0.0),
        tta=("hflip",),
        run_dir=folder / run,
        cache_dir=folder / "cache",
        workers=0,
        fresh=False,
        save_minutes=1e-6,
    )
    folds.train_fold(task, 0)


_SETTINGS = {  # what has state, or a moment of its own, is on
    "model": "test_resnet",
    "weights": "none",
    "head": "random",
    "norm": "learn",
    "side_px": SIDE_PX,
    "augment": "flip",
    "curriculum": ["6:affine_boxes:0.5"],
    "mixup_alpha": 0.3,
    "sampler": "weighted",
    "loss": "focal",
    "epochs": EPOCHS,
    "batch_size": 8,
    "accumulate": 2,
    "sam_rho": 0.02,
    "lr": 0.003,
    "schedule": "plateau",
    "warmup_epochs": 1.0,
    "ema_decay": 0.95,
    "keep": "best_mean",
    "deterministic": True,
}


def start(folder: Path, run: str) -> subprocess.Popen:
    """The training in a process of its own."""
    command = [sys.executable, __file__, "--train", run, "--folder", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment)


def kill_often(folder: Path, kills: int, seed: int) -> tuple[int, int, float]:
    """(kills that hit, of them inside an epoch, seconds) until the run is done."""
    rng, began, hits, inside = random.Random(seed), time.perf_counter(), 0, 0
    newest = folder / "killed" / "fold0" / "checkpoint.pt"
    while hits < kills:
        before = newest.stat().st_mtime_ns if newest.exists() else 0
        process = start(folder, "killed")
        while process.poll() is None:  # it has to have begun, or nothing is tested
            now = newest.stat().st_mtime_ns if newest.exists() else before
            if now != before:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        hits += 1
        inside += _is_inside(newest)
    if start(folder, "killed").wait():
        raise SystemExit("the run could not be continued")
    return hits, inside, time.perf_counter() - began


def _is_inside(path: Path) -> bool:
    import torch

    if not path.exists():
        return False
    return torch.load(path, weights_only=True)["position"]["step"] > 0


def list_differences(folder: Path) -> list[str]:
    """Files of the killed run that are not those of the whole one."""
    from safetensors.numpy import load_file

    whole, killed = folder / "whole" / "fold0", folder / "killed" / "fold0"
    found = []
    timeless = ["epoch", "train_loss", "valid_loss", "valid_accuracy", "lr"]
    one, two = (pd.read_csv(d / "history.csv")[timeless] for d in (whole, killed))
    if not one.equals(two):
        found.append("history.csv")
    for name in ("oof.npz", "test.npz"):
        with np.load(whole / name) as a, np.load(killed / name) as b:
            if any(not np.array_equal(a[key], b[key]) for key in a.files):
                found.append(name)
    one, two = (load_file(d / "model.safetensors") for d in (whole, killed))
    if any(not np.array_equal(one[key], two[key]) for key in one):
        found.append("model.safetensors")
    return found


def measure(folder: Path, kills: int, seed: int) -> int:
    """Train whole and killed, print the comparison; the number of differences."""
    write_drawings(folder)
    began = time.perf_counter()
    if start(folder, "whole").wait():
        raise SystemExit("the run that nobody kills should end well")
    alone = time.perf_counter() - began
    hits, inside, seconds = kill_often(folder, kills, seed)
    differing = list_differences(folder)
    print(f"kills that hit: {hits}, of them inside an epoch: {inside}")
    print(f"seconds whole: {alone:.1f}, killed and continued: {seconds:.1f}")
    print(f"files that differ: {', '.join(differing) or 'none'}")
    return len(differing)


def main() -> int:
    """Read the arguments and measure, or train where a measurement asks for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(Path(options.folder), options.train)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return int(measure(Path(folder), options.kills, options.seed) > 0)


if __name__ == "__main__":
    sys.exit(main())
