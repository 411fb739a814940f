"""`Recipe` and `fit`: the training loop, on accelerate.

One call trains one fold: shuffle, augment, step, score, save, epoch by epoch. Every
epoch starts from a seed made of (seed, fold, epoch) and ends with a checkpoint, so a
killed run continues where it was and ends with the same numbers. The schedule counts
optimiser updates, never epochs by accident. Limits: one process; several need
`accelerate launch`.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.data import Mixup
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

from sketchlib import workspace
from sketchlib.training import compute, datasets, kernels, models, transforms

SCHEDULES = ("cosine", "step", "constant")
KEEPS = ("last", "best")
NORMS = ("still", "folded", "learn")


@dataclass(frozen=True)
class Recipe:
    """How to train; every field comes from the notebook's parameters.

    Attributes:
        augment: recipe name of `transforms`.
        epochs: passes over the training rows, ≥ 1.
        batch_size: pictures per optimiser step, ≥ 2.
        accumulate: the step is computed in this many parts, ≥ 1.
        optimizer: a name timm knows.
        lr: peak learning rate, > 0.
        schedule: cosine (to zero), step (× 0.1 at 60 and 85 %), or constant.
        warmup_epochs: epochs of linear warm-up, ≥ 0, less than `epochs`.
        weight_decay: ≥ 0.
        layer_decay: lr factor per layer from the head down, 0-1; 0 is off.
        label_smoothing: 0-1.
        mixup_alpha: Beta parameter of mixup, 0 is off.
        cutmix_alpha: Beta parameter of CutMix, 0 is off.
        mix_off_epochs: last epochs without mixing, ≥ 0.
        ema_decay: decay of the averaged weights, 0-1; 0 is off.
        clip_norm: largest gradient norm, 0 is off.
        frozen: train only the classifier.
        norm: batch-norm statistics: `still` keeps the pretrained ones, which a short
            fine-tune of few drawings needs; `folded` does too, and trains with the
            norms multiplied into the convolutions, which is faster; `learn` follows
            the batches.
        keep: weights used to predict: `last`, or `best` on the held-out fold, whose
            score then flatters itself a little.
        seed: ≥ 0.
    """

    augment: str
    epochs: int
    batch_size: int
    accumulate: int
    optimizer: str
    lr: float
    schedule: str
    warmup_epochs: float
    weight_decay: float
    layer_decay: float
    label_smoothing: float
    mixup_alpha: float
    cutmix_alpha: float
    mix_off_epochs: int
    ema_decay: float
    clip_norm: float
    frozen: bool
    norm: str
    keep: str
    seed: int

    def __post_init__(self) -> None:
        check_recipe(self)


def check_recipe(recipe: Recipe) -> None:
    """Raise ValueError for a value out of range or settings that contradict."""
    transforms.check_recipe(recipe.augment)
    wrong = [
        (recipe.epochs >= 1, "epochs", "at least 1", recipe.epochs),
        (recipe.batch_size >= 2, "batch_size", "at least 2", recipe.batch_size),
        (recipe.accumulate >= 1, "accumulate", "at least 1", recipe.accumulate),
        (0 < recipe.lr < math.inf, "lr", "over 0", recipe.lr),
        (recipe.weight_decay >= 0, "weight_decay", "0 or more", recipe.weight_decay),
        (0 <= recipe.layer_decay < 1, "layer_decay", "0-1", recipe.layer_decay),
        (0 <= recipe.label_smoothing < 1, "label_smoothing", "0-1", None),
        (0 <= recipe.ema_decay < 1, "ema_decay", "0-1, under 1", recipe.ema_decay),
        (recipe.clip_norm >= 0, "clip_norm", "0 or more", recipe.clip_norm),
        (recipe.schedule in SCHEDULES, "schedule", str(SCHEDULES), recipe.schedule),
        (recipe.norm in NORMS, "norm", str(NORMS), recipe.norm),
        (recipe.keep in KEEPS, "keep", str(KEEPS), recipe.keep),
        (
            0 <= recipe.warmup_epochs < recipe.epochs,
            "warmup_epochs",
            f"0 to less than epochs ({recipe.epochs})",
            recipe.warmup_epochs,
        ),
        (
            recipe.optimizer in list_optimizers(),
            "optimizer",
            "one timm knows, such as adamw, sgd, lamb",
            recipe.optimizer,
        ),
    ]
    for holds, name, wanted, got in wrong:
        if not holds:
            got = getattr(recipe, name) if got is None else got
            raise ValueError(f"`{name}` should be {wanted}, but {got!r} came")


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """The same recipe for fewer epochs; warm-up and mixing shrink to fit."""
    return dataclasses.replace(
        recipe,
        epochs=epochs,
        warmup_epochs=min(recipe.warmup_epochs, epochs / 4),
        mix_off_epochs=min(recipe.mix_off_epochs, epochs),
    )


def fit(
    model: nn.Module,
    train: datasets.Examples,
    valid: datasets.Examples,
    recipe: Recipe,
    *,
    way: compute.Compute,
    fold_dir: Path,
    workers: int = 0,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> pd.DataFrame:
    """Train `model` in place and return its history.

    Args:
        model: bare timm model; ends with the weights that `recipe.keep` names.
        train: rows to learn from.
        valid: held-out rows, scored each epoch; may be empty.
        recipe: see `Recipe`.
        way: precision, layout and device.
        fold_dir: the checkpoint lives here; an unfinished one is continued.
        workers: loader processes; 0 augments in this process.
        on_epoch: called with each row of the history.
    Returns:
        One row per epoch: epoch (from 1), train_loss, valid_loss, valid_accuracy
        (0-1), lr (at the epoch's end), seconds, images_per_second.
    Raises:
        ValueError: a checkpoint of another recipe, data or model is in the way.
        FloatingPointError: the loss is no longer finite; names epoch and step.
    """
    state = _State(model, train, recipe, way, workers)
    task = fingerprint(model, train, valid, recipe)
    rows = _resume(state, fold_dir, task)
    valid_loader = datasets.make_loader(
        datasets.SketchDataset(valid, "none", recipe.seed),
        recipe.batch_size * 2,
        workers=0,
        training=False,
    )
    for epoch in range(len(rows), recipe.epochs):
        started = time.perf_counter()
        workspace.seed_everything(recipe.seed * 1000 + epoch)
        loss = _train_epoch(state, recipe, epoch)
        speed = len(train.rows) / (time.perf_counter() - started)
        row = {"epoch": epoch + 1, "train_loss": loss}
        row |= _validate(state.averaged, valid_loader, way, state.stats)
        row |= {
            "lr": state.optimizer.param_groups[-1]["lr"],
            "seconds": time.perf_counter() - started,
            "images_per_second": speed,
        }
        rows.append(row)
        _save(state, fold_dir, task, rows)
        if on_epoch:
            on_epoch(row)
    _take_weights(state, model, fold_dir, recipe.keep)
    return pd.DataFrame(rows)


class _State:
    """What an epoch changes: model, average, optimiser, schedule."""

    def __init__(
        self,
        model: nn.Module,
        train: datasets.Examples,
        recipe: Recipe,
        way: compute.Compute,
        workers: int,
    ) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # one per fit
        self.accelerator = Accelerator(
            mixed_precision="no" if way.precision == "fp32" else way.precision,
            gradient_accumulation_steps=recipe.accumulate,
            cpu=way.device == "cpu",
        )
        self.folded = (
            kernels.Folded(model, kernels.make_sample(train.pixels.geometry.side_px))
            if recipe.norm == "folded"
            else None
        )
        if recipe.frozen:
            models.freeze_backbone(model)
        self.bare = way.place(model)
        self.stats = tuple(value.to(way.device) for value in models.input_stats(model))
        self.way = way
        self.classes = int(model.num_classes)  # type: ignore[arg-type]
        optimizer = create_optimizer_v2(
            model,
            opt=recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay or None,
        )
        loader = datasets.make_loader(
            datasets.SketchDataset(train, recipe.augment, recipe.seed),
            max(2, recipe.batch_size // recipe.accumulate),
            workers=workers,
            training=True,
        )
        self.sampler: Any = loader.sampler  # accelerate wraps the loader, not this
        self.updates = math.ceil(len(loader) / recipe.accumulate)
        self.schedule = _make_schedule(optimizer, recipe, self.updates)
        self.ema = (  # copied before accelerate wraps the model's own forward
            ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True)
            if recipe.ema_decay
            else None
        )
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            model, optimizer, loader
        )
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)

    @property
    def averaged(self) -> nn.Module:
        """The weights that are scored: their average where there is one."""
        return self.ema.module if self.ema else self.bare


def _make_schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, updates: int
) -> Scheduler:
    """Timm's scheduler, counted in updates; it alone honours layer-wise decay."""
    name = "multistep" if recipe.schedule != "cosine" else "cosine"
    milestones = [int(recipe.epochs * share) for share in (0.6, 0.85)]
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=name,
        num_epochs=recipe.epochs,
        decay_milestones=milestones if recipe.schedule == "step" else [10**6],
        decay_rate=0.1,
        min_lr=0.0,
        warmup_lr=recipe.lr / 100,
        warmup_epochs=recipe.warmup_epochs,  # type: ignore[arg-type]
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    return scheduler


def _train_epoch(state: _State, recipe: Recipe, epoch: int) -> float:
    """One pass; returns the mean loss over its pictures."""
    state.model.train()
    if recipe.frozen or recipe.norm == "still":
        kernels.keep_norms_still(state.bare)
    state.sampler.epoch = epoch
    mix = _make_mix(recipe, state.classes, epoch)
    update, total, seen = epoch * state.updates, 0.0, 0
    for step, (images, targets, _) in enumerate(state.loader):
        inputs = datasets.to_input(images, *state.stats)
        inputs = inputs.contiguous(memory_format=state.way.memory_format)
        if mix is not None and len(inputs) % 2 == 0:
            inputs, targets = mix(inputs, targets)
        with state.accelerator.accumulate(state.model):
            loss = state.loss(state.model(inputs).float(), targets)
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss should stay finite, but is {value} in epoch {epoch + 1},"
                    f" step {step + 1}; lower `lr` (now {recipe.lr}), set `clip_norm`, "
                    "or use precision fp32"
                )
            state.accelerator.backward(loss)
            if recipe.clip_norm and state.accelerator.sync_gradients:
                state.accelerator.clip_grad_norm_(
                    state.model.parameters(), recipe.clip_norm
                )
            state.optimizer.step()
            state.optimizer.zero_grad()
        if state.accelerator.sync_gradients:
            update += 1
            state.schedule.step_update(update)
            if state.ema:
                state.ema.update(state.bare, step=update)
        total, seen = total + value * len(images), seen + len(images)
    return total / max(seen, 1)


def _make_mix(recipe: Recipe, classes: int, epoch: int) -> Mixup | None:
    mixes = recipe.mixup_alpha > 0 or recipe.cutmix_alpha > 0
    if not mixes or epoch >= recipe.epochs - recipe.mix_off_epochs:
        return None
    return Mixup(
        mixup_alpha=recipe.mixup_alpha,
        cutmix_alpha=recipe.cutmix_alpha,
        label_smoothing=0.0,  # the loss smooths
        num_classes=classes,
    )


@torch.inference_mode()
def _validate(
    model: nn.Module,
    loader: DataLoader,
    way: compute.Compute,
    stats: tuple[torch.Tensor, ...],
) -> dict[str, float]:
    """Plain cross-entropy and accuracy; NaN where nothing is held out."""
    model.eval()
    loss, hits, seen = 0.0, 0, 0
    for images, targets, _ in loader:
        inputs = datasets.to_input(images.to(way.device), *stats)
        inputs = inputs.contiguous(memory_format=way.memory_format)
        targets = targets.to(way.device)
        with way.autocast():
            logits = model(inputs).float()
        loss += nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        hits += int((logits.argmax(1) == targets).sum())
        seen += len(targets)
    if not seen:
        return {"valid_loss": math.nan, "valid_accuracy": math.nan}
    return {"valid_loss": loss / seen, "valid_accuracy": hits / seen}


# --- checkpoints ------------------------------------------------------------


def fingerprint(
    model: nn.Module,
    train: datasets.Examples,
    valid: datasets.Examples,
    recipe: Recipe,
) -> dict[str, object]:
    """What must be equal for a checkpoint to be continued, named piece by piece."""
    return {
        "recipe": dataclasses.asdict(recipe),
        "model": [type(model).__name__, int(model.num_classes)],  # type: ignore[arg-type]
        "weights": workspace.hash_value(
            [[name, list(w.shape)] for name, w in model.state_dict().items()]
        ),
        "geometry": dataclasses.asdict(train.pixels.geometry),
        "train": workspace.hash_value([list(train.image_ids), train.labels.tolist()]),
        "valid": workspace.hash_value([list(valid.image_ids), valid.labels.tolist()]),
    }


def _save(
    state: _State, fold_dir: Path, task: dict[str, object], rows: list[dict]
) -> None:
    """Write the checkpoint; the one before stays as `previous.pt`."""
    content = {
        "task": task,
        "rows": rows,
        "model": state.bare.state_dict(),
        "ema": state.ema.module.state_dict() if state.ema else None,
        "optimizer": state.optimizer.state_dict(),
    }
    newest = fold_dir / "checkpoint.pt"
    with workspace.atomic_path(newest) as temporary:
        torch.save(content, temporary)
        if newest.exists():
            shutil.copyfile(newest, fold_dir / "previous.pt")
    best = max(range(len(rows)), key=lambda i: (rows[i]["valid_accuracy"], i))
    if best == len(rows) - 1:
        with workspace.atomic_path(fold_dir / "best.pt") as temporary:
            torch.save({"model": state.averaged.state_dict()}, temporary)


def _resume(
    state: _State, fold_dir: Path, task: dict[str, object]
) -> list[dict[str, float]]:
    """Load the newest readable checkpoint; returns the history so far."""
    for path in (fold_dir / "checkpoint.pt", fold_dir / "previous.pt"):
        if not path.exists():
            continue
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            print(f"{path.name} is damaged ({error}); trying the one before")
            continue
        _check_same_task(found["task"], task, fold_dir)
        state.bare.load_state_dict(found["model"])
        if state.ema:
            state.ema.module.load_state_dict(found["ema"])
        state.optimizer.load_state_dict(found["optimizer"])
        return found["rows"]
    return []


def _check_same_task(
    found: dict[str, object], wanted: dict[str, object], fold_dir: Path
) -> None:
    found, wanted = _flatten(found), _flatten(wanted)
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    if changed:
        told = ", ".join(
            f"{key} {found.get(key)} → {wanted[key]}" for key in changed[:4]
        )
        raise ValueError(
            f"the unfinished checkpoint in {fold_dir} should be of this very task, but "
            f"differs in {told}; give another `run_name`, restore the parameters, or "
            "set `fresh: true` to start over"
        )


def _flatten(value: dict[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, part in value.items():
        if isinstance(part, dict):
            flat |= {f"{key}.{name}": inner for name, inner in part.items()}
        else:
            flat[key] = part
    return flat


def _take_weights(state: _State, model: nn.Module, fold_dir: Path, keep: str) -> None:
    """Leave in `model` the weights to predict with, and its own forward."""
    state.accelerator.unwrap_model(state.model, keep_fp32_wrapper=False)
    best = fold_dir / "best.pt"
    if keep == "best" and best.exists():
        found = torch.load(best, map_location="cpu", weights_only=True)
        model.load_state_dict(found["model"])
    elif state.ema:
        model.load_state_dict(state.ema.module.state_dict())
    if state.folded:
        state.folded.restore()
    model.eval()


def release(fold_dir: Path) -> None:
    """Remove the checkpoints of a finished fold; its weights stand elsewhere."""
    for name in ("checkpoint.pt", "previous.pt", "best.pt"):
        (fold_dir / name).unlink(missing_ok=True)


def class_balance(labels: np.ndarray, classes: int) -> float:
    """Accuracy of always naming the largest class: the level of chance, 0-1."""
    return float(np.bincount(labels, minlength=classes).max() / max(len(labels), 1))


def read_curves(history: pd.DataFrame) -> str:
    """Over- or underfitting, in words with the figures, from the mean over folds.

    Args:
        history: fold, epoch, train_loss, valid_loss.
    """
    curves = history.groupby("epoch")[["train_loss", "valid_loss"]].mean()
    if curves["valid_loss"].isna().all() or len(curves) < 3:
        return "Too few epochs, or nothing held out: no reading of the curves."
    low = curves["valid_loss"].idxmin()
    rise = curves["valid_loss"].iloc[-1] / curves["valid_loss"].min() - 1
    last = curves["valid_loss"].iloc[-1]
    recent = 1 - last / curves["valid_loss"].iloc[-max(2, len(curves) // 3) - 1]
    if rise > 0.05:
        return (
            f"**Overfitting**: the held-out loss was lowest in epoch {low} and has "
            f"risen {rise:.0%} since; augment more, or train for fewer epochs."
        )
    if recent > 0.1:
        return (
            f"**Still learning**: the held-out loss fell {recent:.0%} over the last "
            "third of the epochs; more epochs may help."
        )
    return (
        f"**Settled**: over the last third of the epochs the held-out loss moved by "
        f"{abs(recent):.0%}; more epochs of the same will change little."
    )
