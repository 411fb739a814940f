"""`fit`: the training loop, on accelerate.

One call trains one fold: shuffle, augment, step, score, save, epoch by epoch. What is
random in an update comes from (seed, epoch, step) alone, and checkpoints are written
every epoch and inside long ones, so a run killed at any moment continues where it was
and ends with the same numbers. An update is that of the whole batch, in however many
parts memory allows. Limits: one process; several need `accelerate launch`.
"""

import contextlib
import copy
import dataclasses
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from sketchlib import workspace
from sketchlib.training import (
    checkpoints,
    composites,
    compute,
    datasets,
    heads,
    kernels,
    models,
    optim,
    processes,
)
from sketchlib.training import recipe as recipes
from sketchlib.training.checkpoints import Position, release
from sketchlib.training.memory import Parts
from sketchlib.training.recipe import Recipe, make_stages, with_epochs

__all__ = [
    "Recipe",
    "Stopped",
    "find_lr",
    "fit",
    "make_stages",
    "release",
    "try_update",
    "with_epochs",
]

_FIND_STEPS = 60  # updates of the rate finder
_RETRY_FACTOR = 0.1


class Stopped(Exception):
    """Raised by `on_epoch` to end a fold there; its checkpoint stays."""


class NotFinite(FloatingPointError):
    """The loss, or a weight, is no longer a number."""


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
    save_minutes: float = 0.0,
) -> pd.DataFrame:
    """Train `model` in place and return its history.

    Args:
        model: bare timm model; ends with the weights that `recipe.keep` names.
        train: rows to learn from, with their weights in the loss.
        valid: held-out rows, scored each epoch; may be empty.
        recipe: see `Recipe`.
        way: precision, layout and device.
        fold_dir: the checkpoint lives here; an unfinished one is continued.
        workers: loader processes; 0 augments in this process.
        on_epoch: called with each row of the history; may raise `Stopped`.
        save_minutes: also save inside an epoch, this often; 0 is off.
    Returns:
        One row per epoch: epoch (from 1), train_loss, valid_loss, valid_accuracy
        (0-1), lr (at the epoch's end), seconds, images_per_second, side_px.
    Raises:
        ValueError: a checkpoint of another recipe, data or model is in the way, or
            the recipe leaves its batch open.
        FloatingPointError: the loss is no longer finite; names epoch and step, and
            `bad_batch.json` in the folder the pictures.
        MemoryError: not even two pictures at once fit.
        Stopped: `on_epoch` raised it.
    """
    recipes.check_settled(recipe)
    recipes.check_sides(recipe, train.pixels.geometry.side_px, has_fixed_size(model))
    task = checkpoints.fingerprint(model, train, valid, recipe)
    keeper = checkpoints.Keeper(fold_dir, task, recipe, save_minutes)
    with _repeatable(recipe.deterministic):
        state = _State(model, train, recipe, way, workers)
        position = _restore(state, keeper)
        loader = _make_valid_loader(valid, recipe)
        while not _is_over(recipe, position):
            try:
                _train_epoch(state, position, keeper)
                row = _finish_epoch(state, position, loader)
            except NotFinite as error:
                position = _retry(state, keeper, error)
                continue
            keeper.keep_weights(position.rows, state.averaged)
            keeper.save(position, state.content())
            keeper.prune_weights(position.rows)
            if on_epoch:
                on_epoch(row)
        _take_weights(state, position, keeper)
    return pd.DataFrame(position.rows)


class _State:
    """What an update changes: model, average, optimiser, rate."""

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
            cpu=way.device == "cpu",
        )
        self.folded = (
            kernels.Folded(model, kernels.make_sample(train.pixels.geometry.side_px))
            if recipe.norm == "folded"
            else None
        )
        if recipe.frozen:
            heads.freeze_backbone(model, recipe.unfreeze_last)
        self.recipe = recipe
        self.train = train
        self.bare = way.place(model)
        self.parameters = list(model.parameters())  # listing them takes half a ms
        self.stats = tuple(value.to(way.device) for value in models.input_stats(model))
        self.way = way
        self.classes = int(model.num_classes)  # type: ignore[arg-type]
        self.stages = recipes.make_stages(recipe)
        loader = datasets.make_loader(
            datasets.SketchDataset(train, recipe.augment, recipe.seed, self.stages),
            recipe.batch_size,
            workers=workers,
            training=True,
            how=recipe.sampler,
        )
        batches: Any = loader.batch_sampler  # accelerate wraps the loader alone
        self.batches = batches
        self.sampler = batches.sampler
        self.updates = len(loader)
        self.ema = (  # copied before accelerate wraps the model's own forward
            ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True)
            if recipe.ema_decay
            else None
        )
        optimizer = optim.make_optimizer(model, recipe, recipe.lr)
        self.schedule = optim.make_schedule(optimizer, recipe, self.updates)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.loader = loader
        self.loss = composites.make_loss(
            model, recipe, train.labels, self.classes, way.device
        )
        self.weights = torch.tensor(train.weights.tolist(), dtype=torch.float32)
        least = 2 if recipe.norm == "learn" and not recipe.frozen else 1
        parts = math.ceil(recipe.batch_size / recipe.accumulate)
        self.parts = Parts(max(parts, least), least)
        self.scoring = Parts(recipe.batch_size * 2, 1)

    @property
    def averaged(self) -> nn.Module:
        """The weights that are scored: their average where there is one."""
        return self.ema.module if self.ema else self.bare

    def feed(self) -> Iterator[datasets.Batch]:
        """The batches of an epoch on the device; positions stay where they are."""
        device = self.accelerator.device
        for images, targets, positions in self.loader:
            yield (
                images.to(device, non_blocking=True),
                targets.to(device, non_blocking=True),
                positions,
            )

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds beside the position."""
        return {
            "model": self.bare.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, content: dict[str, Any]) -> None:
        """The reverse of `content`."""
        self.bare.load_state_dict(content["model"])
        if self.ema:
            self.ema.module.load_state_dict(content["ema"])
        self.optimizer.load_state_dict(content["optimizer"])

    def set_lr(self, update: int, factor: float) -> None:
        """The rate of the next update, the number `update` from 0."""
        self.schedule.step_update(update)
        for group in self.optimizer.param_groups:
            group["lr"] *= factor


def has_fixed_size(model: nn.Module) -> bool:
    """Whether timm says that the model takes pictures of one size only."""
    return bool(getattr(model, "pretrained_cfg", {}).get("fixed_input_size"))


@contextlib.contextmanager
def _repeatable(wanted: bool) -> Iterator[None]:
    """Inside, torch takes only operations that repeat bit by bit, if `wanted`."""
    before = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


def _restore(state: _State, keeper: checkpoints.Keeper) -> Position:
    position, content = keeper.read()
    if content:
        state.load(content)
    elif state.recipe.retry_nan:  # the first epoch, too, has something to go back to
        keeper.save(position, state.content())
    if position.limit:
        state.parts.limit = position.limit
    return position


def _is_over(recipe: Recipe, position: Position) -> bool:
    if len(position.rows) >= recipe.epochs:
        return True
    reason = recipes.find_stop(recipe, position.rows) if not position.step else ""
    if reason:
        print(f"notice: stopped after epoch {len(position.rows)}: {reason}")
    return bool(reason)


def _retry(state: _State, keeper: checkpoints.Keeper, error: NotFinite) -> Position:
    """Go on from the last checkpoint at a lower rate, once; else raise `error`."""
    position, content = keeper.read()
    if not state.recipe.retry_nan or position.slower < 1 or not content:
        raise error
    state.load(content)
    position.slower = _RETRY_FACTOR
    keeper.save(position, state.content())  # a kill must not allow a second retry
    print(f"notice: {error}; going on from the last checkpoint at a tenth of the rate")
    return position


# --- an epoch ---------------------------------------------------------------


def _train_epoch(state: _State, position: Position, keeper: checkpoints.Keeper) -> None:
    """The updates of an epoch that are left; `position` counts them."""
    recipe, epoch = state.recipe, len(position.rows)
    state.model.train()
    if recipe.frozen or recipe.norm != "learn":
        kernels.keep_norms_still(state.bare)
    state.sampler.epoch = epoch
    state.sampler.start = position.step * recipe.batch_size
    factor = optim.find_factor(recipe, epoch, position.rows) * position.slower
    state.set_lr(epoch * state.updates + position.step, factor)
    mix = _make_mix(recipe, state.classes, epoch)
    began = time.perf_counter() - position.seconds
    for images, targets, rows in itertools.islice(
        state.feed(), state.updates - position.step
    ):
        _seed_step(state, epoch, position.step)
        weights = state.weights[rows].to(targets.device)
        loss = _update(state, _mix(state, mix, images, targets), weights)
        if not math.isfinite(loss):
            _raise_not_finite(state, position, keeper, rows, f"the loss is {loss}")
        position.step += 1
        update = epoch * state.updates + position.step
        state.set_lr(update, factor)
        if state.ema:
            state.ema.update(state.bare, step=update)
        size = state.batches.total(position.step - 1) / processes.count()
        position.loss += loss * size
        position.seen += size
        position.seconds = time.perf_counter() - began
        position.limit = state.parts.limit
        if keeper.is_due and position.step < state.updates:
            keeper.save(position, state.content())
    broken = [n for n, w in state.bare.named_parameters() if not w.isfinite().all()]
    if broken:
        found = f"{len(broken)} weights are not, first {broken[0]}"
        _raise_not_finite(state, position, keeper, torch.zeros(0), found)


def _seed_step(state: _State, epoch: int, step: int) -> None:
    entropy = [
        state.recipe.seed,
        epoch,
        step,
        *[processes.rank()] * (processes.count() > 1),
    ]
    mixed = np.random.SeedSequence(entropy).generate_state(1)[0]
    workspace.seed_everything(int(mixed), devices=state.way.device != "cpu")


def _raise_not_finite(
    state: _State,
    position: Position,
    keeper: checkpoints.Keeper,
    rows: torch.Tensor,
    found: str,
) -> None:
    """Say where, and leave the ids of the batch in `bad_batch.json`."""
    epoch, step = len(position.rows) + 1, position.step + 1
    named = [str(name) for name in state.train.image_ids[rows.long().cpu().numpy()]]
    workspace.write_json(
        keeper.fold_dir / "bad_batch.json",
        {"epoch": epoch, "step": step, "found": found, "image_ids": named},
    )
    raise NotFinite(
        f"the loss and the weights should stay finite, but {found} in epoch {epoch}, "
        f"step {step} (its pictures stand in {keeper.fold_dir / 'bad_batch.json'}); "
        f"lower `lr` (now {state.recipe.lr}), set `clip_norm` or `retry_nan`, or use "
        "precision fp32"
    )


def _mix(
    state: _State, mix: Mixup | None, images: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixed float pictures and soft targets; an odd batch stays as it is."""
    if mix is None or len(images) % 2:
        return images, targets
    return mix(datasets.to_input(images, *state.stats), targets)


def _update(
    state: _State, batch: tuple[torch.Tensor, torch.Tensor], weights: torch.Tensor
) -> float:
    """One optimiser step on a whole batch; returns its loss, finite or not."""
    while True:
        try:
            loss = _accumulate(state, batch, weights)
            if state.recipe.sam_rho and math.isfinite(loss):
                rho = state.recipe.sam_rho
                with optim.perturbed(list(state.bare.parameters()), rho):
                    _accumulate(state, batch, weights)
            break
        except RuntimeError as error:  # out of memory; others are raised again
            state.optimizer.zero_grad()
            state.parts.shrink(error, len(weights), "training")
    if math.isfinite(loss):
        if state.recipe.clip_norm:
            state.accelerator.clip_grad_norm_(state.parameters, state.recipe.clip_norm)
        state.optimizer.step()
    state.optimizer.zero_grad()
    return loss


def _accumulate(
    state: _State, batch: tuple[torch.Tensor, torch.Tensor], weights: torch.Tensor
) -> float:
    """Gradients of the whole batch, part by part; the loss without penalties."""
    images, targets = batch
    whole = processes.add_up([weights.sum().item()])[0] / processes.count()
    parts = state.parts.split(len(images))
    total = 0.0
    for part in parts:
        last = part is parts[-1]
        apart = contextlib.nullcontext if last else state.accelerator.no_sync
        with apart(state.model):
            inputs = images[part]
            if inputs.dtype == torch.uint8:
                inputs = datasets.to_input(inputs, *state.stats)
            inputs = inputs.contiguous(memory_format=state.way.memory_format)
            share = weights[part].sum() / max(whole, 1e-12)  # processes are averaged
            logits = state.model(inputs).float()
            loss = state.loss(logits, targets[part], weights[part]) * share
            total += loss.item()
            if not math.isfinite(total):
                return total
            if last:
                loss = loss + state.loss.penalty(state.bare.parameters())
            state.accelerator.backward(loss)
    return total


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


# --- scoring ----------------------------------------------------------------


def _make_valid_loader(valid: datasets.Examples, recipe: Recipe) -> DataLoader:
    """The held-out pictures that each epoch is scored on: always the same ones."""
    if recipe.score_fraction < 1 and len(valid.rows):
        rng = np.random.default_rng([recipe.seed, len(valid.rows)])
        count = max(1, round(recipe.score_fraction * len(valid.rows)))
        few = np.sort(rng.permutation(len(valid.rows))[:count])
        valid = dataclasses.replace(
            valid,
            rows=valid.rows[few],
            labels=valid.labels[few],
            weights=valid.weights[few],
        )
    return datasets.make_loader(
        datasets.SketchDataset(valid, "none", recipe.seed),
        recipe.batch_size * 2,
        workers=0,
        training=False,
    )


def _finish_epoch(
    state: _State, position: Position, loader: DataLoader
) -> dict[str, float]:
    """Score, and turn the counts of `position` into a row of the history."""
    began = time.perf_counter()
    loss, seen = processes.add_up([position.loss, position.seen])
    row = {"epoch": len(position.rows) + 1, "train_loss": loss / max(seen, 1)}
    processes.share_buffers(state.averaged)
    row |= _validate(state.averaged, loader, state.way, state.stats, state.scoring)
    row |= {
        "lr": state.optimizer.param_groups[-1]["lr"],
        "seconds": position.seconds + time.perf_counter() - began,
        "images_per_second": seen / max(position.seconds, 1e-9),
        "side_px": recipes.find_stage(state.stages, len(position.rows)).side_px
        or state.train.pixels.geometry.side_px,
    }
    position.rows.append(row)
    position.step, position.loss, position.seen = 0, 0.0, 0
    position.seconds = 0.0
    return row


@torch.inference_mode()
def _validate(
    model: nn.Module,
    loader: DataLoader,
    way: compute.Compute,
    stats: tuple[torch.Tensor, ...],
    parts: Parts,
) -> dict[str, float]:
    """Plain cross-entropy and accuracy; NaN where nothing is held out."""
    model.eval()
    loss, hits, seen = 0.0, 0.0, 0.0
    for images, targets, _ in loader:
        logits = _score(model, images, way, stats, parts)
        targets = targets.to(logits.device)
        loss += nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        hits += int((logits.argmax(1) == targets).sum())
        seen += len(targets)
    loss, hits, seen = processes.add_up([loss, hits, seen])
    if not seen:
        return {"valid_loss": math.nan, "valid_accuracy": math.nan}
    return {"valid_loss": loss / seen, "valid_accuracy": hits / seen}


def _score(
    model: nn.Module,
    images: torch.Tensor,
    way: compute.Compute,
    stats: tuple[torch.Tensor, ...],
    parts: Parts,
) -> torch.Tensor:
    """(B, K) float32 logits, in as many parts as memory asks for."""
    while True:
        try:
            logits = []
            for part in parts.split(len(images)):
                inputs = datasets.to_input(images[part].to(way.device), *stats)
                inputs = inputs.contiguous(memory_format=way.memory_format)
                with way.autocast():
                    logits.append(model(inputs).float())
            return torch.cat(logits)
        except RuntimeError as error:  # out of memory; others are raised again
            parts.shrink(error, len(images), "scoring")


def _take_weights(
    state: _State, position: Position, keeper: checkpoints.Keeper
) -> None:
    """Leave in the model the weights to predict with, and its own forward."""
    processes.wait()  # the first one has written them
    model = state.accelerator.unwrap_model(state.model, keep_fp32_wrapper=False)
    if checkpoints.choose_epochs(position.rows, state.recipe):
        state.bare.load_state_dict(keeper.read_weights(position.rows))
    elif state.ema:
        state.bare.load_state_dict(state.ema.module.state_dict())
    learns = state.recipe.norm == "learn" and not state.recipe.frozen
    if state.recipe.keep.endswith("_mean") and learns:
        _learn_batch_norm(state)
    processes.share_buffers(state.bare)
    if state.folded:
        state.folded.restore()
    model.eval()


def _learn_batch_norm(state: _State) -> None:
    """Batch-norm statistics of averaged weights, from one more pass."""
    state.sampler.epoch, state.sampler.start = state.recipe.epochs, 0
    inputs = (
        datasets.to_input(images, *state.stats).contiguous(
            memory_format=state.way.memory_format
        )
        for images, _, _ in state.feed()
    )
    update_bn(inputs, state.bare)


# --- the rate finder --------------------------------------------------------


def find_lr(
    model: nn.Module,
    train: datasets.Examples,
    recipe: Recipe,
    way: compute.Compute,
    *,
    low: float = 1e-6,
    high: float = 1.0,
) -> pd.DataFrame:
    """The loss while the rate rises by a constant factor: `lr`, `loss`.

    Source: Smith, WACV 2017. `model` is left as it was; the curve ends where the loss
    is four times its lowest. See `optim.suggest_lr`.
    """
    state = _State(copy.deepcopy(model), train, recipe, way, 0)
    state.model.train()
    if recipe.frozen or recipe.norm != "learn":
        kernels.keep_norms_still(state.bare)
    base = [group.get("lr_scale", 1.0) for group in state.optimizer.param_groups]
    rates = np.geomspace(low, high, _FIND_STEPS)
    found: list[dict[str, float]] = []
    batches = itertools.chain.from_iterable(_loop_epochs(state))
    for step, (rate, batch) in enumerate(zip(rates, batches, strict=False)):
        images, targets, rows = batch
        for group, scale in zip(state.optimizer.param_groups, base, strict=True):
            group["lr"] = rate * scale
        _seed_step(state, 0, step)
        weights = state.weights[rows].to(targets.device)
        loss = _update(state, (images, targets), weights)
        lowest = min((row["loss"] for row in found), default=loss)
        if not math.isfinite(loss) or (step > 5 and loss > 4 * lowest):
            break
        found.append({"lr": float(rate), "loss": loss})
    return pd.DataFrame(found)


def _loop_epochs(state: _State) -> Iterator[Iterator[datasets.Batch]]:
    for epoch in itertools.count():
        state.sampler.epoch = epoch
        yield state.feed()


def try_update(
    model: nn.Module, train: datasets.Examples, recipe: Recipe, way: compute.Compute
) -> None:
    """One whole update on a copy of `model`, to see whether its batch fits.

    Raises:
        RuntimeError: out of memory, as torch says it; nothing is tried again here.
    """
    state = _State(copy.deepcopy(model), train, recipe, way, 0)
    state.model.train()
    images, targets, rows = next(state.feed())
    mix = _make_mix(recipe, state.classes, 0)
    batch = _mix(state, mix, images, targets)
    _accumulate(state, batch, state.weights[rows].to(targets.device))
    state.optimizer.step()
