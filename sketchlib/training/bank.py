"""The feature bank: frozen features of seeded augmented views, computed once.

A frozen backbone gives the same features for the same view, so every view of every
picture passes it once and is kept as a memory-mapped float16 array; each head, loss,
fold, seed and curriculum on top then takes seconds. A bank is a folder that can be
copied: rows are found by image id, and neither weights nor pixels are needed to use
it. Limits: an epoch draws from the views there are; nothing mixes pictures.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from sketchlib import workspace
from sketchlib.data import cache
from sketchlib.training import (
    composites,
    compute,
    datasets,
    heads,
    kernels,
    losses,
    models,
    optim,
    transforms,
    viewing,
)
from sketchlib.training import recipe as recipes
from sketchlib.training.predictions import Predictions, average

CHUNK = 128  # pictures between two notes of how far it is
PLAIN = "plain"


@dataclass(frozen=True)
class Bank:
    """Features of N pictures in V views.

    Attributes:
        features: (V, N, D) float16.
        image_ids: (N,) ids.
        views: V names: `plain`, those of `viewing.spell`, or `<recipe>#<draw>`.
    """

    features: np.ndarray
    image_ids: np.ndarray
    views: Sequence[str]

    def take(self, view: int, image_ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """(n, D) float32 features of a view.

        Raises:
            ValueError: the bank lacks a picture.
        """
        place = pd.Series(np.arange(len(self.image_ids)), index=self.image_ids)
        rows = place.reindex(image_ids)
        if rows.isna().any():
            raise ValueError(
                f"the feature bank should hold all {len(rows)} pictures asked for, but "
                f"lacks {int(rows.isna().sum())} (first "
                f"{rows.index[rows.isna()][0]!r}); "
                "compute it on this data"
            )
        return self.features[view][rows.to_numpy(int)].astype(np.float32)


def name_views(recipe: recipes.Recipe, draws: int, tta: Sequence[str]) -> list[str]:
    """The views a run needs: plain, those of `tta`, and `draws` of each recipe's."""
    stages = recipes.make_stages(recipe)
    names = dict.fromkeys(stage.augment for stage in stages if stage.augment != "none")
    drawn = [f"{name}#{draw}" for name in names for draw in range(draws)]
    return [PLAIN, *viewing.spell(tta), *drawn]


def compute_bank(
    model: nn.Module,
    pixels: cache.PixelCache,
    way: compute.Compute,
    views: Sequence[str],
    *,
    seed: int,
    folder: Path,
    facts: dict[str, object],
    progress: Callable[[int, int], None] | None = None,
) -> Bank:
    """Pass every view of every picture through `model`, or go on where it stopped.

    Args:
        model: without a classifier.
        pixels: N pictures.
        way: precision, layout, device.
        views: names; see `Bank`.
        seed: of the draws.
        folder: becomes the bank: features.npy and bank.json.
        facts: provenance, written beside it.
        progress: called with (passes done, passes).
    """
    folder.mkdir(parents=True, exist_ok=True)
    part, note = folder / "features.part.npy", folder / "part.json"
    total = len(pixels.pixels)
    mean, std = (value.to(way.device) for value in models.input_stats(model))
    quick = way.place(kernels.fold_for_inference(model, pixels.geometry.side_px))
    started = part.exists() and note.exists()
    done = workspace.read_json(note)["done"] if started else 0
    if started:
        kept = np.lib.format.open_memmap(part, "r+")
    else:
        shape = (len(views), total, int(model.num_features))  # type: ignore[arg-type]
        kept = np.lib.format.open_memmap(part, "w+", np.float16, shape)
    for start in range(done, len(views) * total, CHUNK):
        stop = min(start + CHUNK, len(views) * total)
        passes = [divmod(number, total) for number in range(start, stop)]
        images = [_draw(pixels, views[view], row, seed) for view, row in passes]
        with torch.inference_mode(), way.autocast():
            inputs = datasets.to_input(torch.stack(images).to(way.device), mean, std)
            found = quick(inputs.contiguous(memory_format=way.memory_format))
        kept.reshape(-1, kept.shape[-1])[start:stop] = found.float().cpu().numpy()
        kept.flush()
        workspace.write_json(note, {"done": stop})
        if progress:
            progress(stop, len(views) * total)
    workspace.write_json(
        folder / "bank.json",
        {
            **facts,
            "views": list(views),
            "seed": seed,
            "image_ids": list(pixels.image_ids),
        },
    )
    del kept
    part.rename(folder / "features.npy")
    note.unlink(missing_ok=True)
    return read_bank(folder)


def _draw(pixels: cache.PixelCache, view: str, row: int, seed: int) -> torch.Tensor:
    """(C, S, S) uint8 of one picture in one view."""
    picture = np.asarray(pixels.pixels[row])
    if view == PLAIN:
        return datasets.as_tensor(picture)
    if viewing.is_view(view):
        return viewing.look(datasets.as_tensor(picture)[None], view)[0]
    name, _, draw = view.rpartition("#")
    drawn = transforms.draw(transforms.make_recipe(name), picture, seed, int(draw), row)
    return datasets.as_tensor(drawn)


def read_bank(folder: Path) -> Bank:
    """The bank in `folder`, wherever it was computed.

    Raises:
        FileNotFoundError: the folder is no finished bank.
    """
    if not (folder / "features.npy").exists() or not (folder / "bank.json").exists():
        raise FileNotFoundError(
            f"features.npy and bank.json were expected in {folder}; copy the whole "
            "folder of a finished bank, or run 03_train with `bank_views` first"
        )
    told = workspace.read_json(folder / "bank.json")
    features = np.load(folder / "features.npy", mmap_mode="r")
    return Bank(features, np.asarray(told["image_ids"]), told["views"])


def join_banks(banks: Sequence[Bank]) -> Bank:
    """Features of several backbones side by side, (V, N, ΣD), by image id.

    Raises:
        ValueError: the banks differ in views, or lack a picture of the first.
    """
    first = banks[0]
    for bank in banks[1:]:
        if list(bank.views) != list(first.views):
            raise ValueError(
                f"banks to join should have the same views, but {list(first.views)} "
                f"and {list(bank.views)} came; compute them with the same `augment`, "
                "`curriculum`, `bank_views` and `tta`"
            )
    if len(banks) == 1:
        return first
    views = range(len(first.views))
    joined = [
        np.concatenate([bank.take(view, first.image_ids) for bank in banks], axis=1)
        for view in views
    ]
    return Bank(np.stack(joined).astype(np.float16), first.image_ids, first.views)


# --- heads on a bank ------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A head: see `heads.make_head`."""

    layers: str
    hidden: int
    drop_rate: float


@dataclass(frozen=True)
class Rows:
    """Some pictures: ids (n,), labels (n,) int64, weights (n,) in the loss, or ones."""

    image_ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None


def fit_head(
    bank: Bank,
    train: Rows,
    valid: Rows,
    recipe: recipes.Recipe,
    form: Form,
    *,
    classes: int,
    blocks: composites.Blocks | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> tuple[nn.Module, pd.DataFrame]:
    """Train a head on the bank; returns it, for raw features, and its history.

    Each epoch shows every picture in one view, drawn among those of the recipe that
    the curriculum names. Features are standardised by the plain training view, which
    is folded into the head at the end.
    """
    recipes.check_banked(recipe)
    workspace.seed_everything(recipe.seed)
    shown = _load_views(bank, train.image_ids, recipe)
    centre = shown[PLAIN][0].mean(0)
    scale = shown[PLAIN][0].std(0).clamp(min=1e-3)
    shown = {name: (views - centre) / scale for name, views in shown.items()}
    held = (torch.from_numpy(bank.take(0, valid.image_ids)) - centre) / scale
    width = bank.features.shape[-1]
    outputs = blocks.width if blocks else classes
    head = heads.make_head(
        form.layers, width, outputs, hidden=form.hidden, drop_rate=form.drop_rate
    )
    head = composites.ComposedHead(head, blocks) if blocks else head
    labels = torch.tensor(train.labels)
    loss = composites.make_loss(head, recipe, train.labels, classes, "cpu")
    given = np.ones(len(labels)) if train.weights is None else train.weights
    shares = torch.tensor(given, dtype=torch.float32)
    updates = math.ceil(len(labels) / recipe.batch_size)
    optimizer = optim.make_optimizer(head, recipe, recipe.lr)
    schedule = optim.make_schedule(optimizer, recipe, updates)
    rows: list[dict[str, float]] = []
    for epoch in range(recipe.epochs):
        started = time.perf_counter()
        seen = _draw_epoch(shown, recipe, epoch)
        steps = _Steps(
            optimizer, schedule, loss, optim.find_factor(recipe, epoch, rows), shares
        )
        trained = steps.run(head, seen, labels, recipe, epoch)
        row = {"epoch": epoch + 1, "train_loss": trained}
        row |= _validate(head, held, valid.labels)
        seconds = time.perf_counter() - started
        row |= {"lr": optimizer.param_groups[-1]["lr"], "seconds": seconds}
        row["images_per_second"] = len(labels) / seconds
        rows.append(row)
        if on_epoch:
            on_epoch(row)
    _fold_in(head, centre, scale)
    return head.eval(), pd.DataFrame(rows)


def _load_views(
    bank: Bank, image_ids: np.ndarray, recipe: recipes.Recipe
) -> dict[str, torch.Tensor]:
    """Recipe name → (v, n, D) of its draws; `plain` is the first view alone."""
    names = dict.fromkeys(stage.augment for stage in recipes.make_stages(recipe))
    found = {PLAIN: [0]}
    for name in names:
        numbers = [i for i, v in enumerate(bank.views) if v.rpartition("#")[0] == name]
        if name != "none" and not numbers:
            raise ValueError(
                f"the feature bank should hold views of the recipe {name!r}, but has "
                f"{list(bank.views)}; compute it with this `augment`, or use another"
            )
        found |= {name: numbers} if numbers else {}
    return {
        name: torch.stack([torch.from_numpy(bank.take(i, image_ids)) for i in numbers])
        for name, numbers in found.items()
    }


def _draw_epoch(
    shown: dict[str, torch.Tensor], recipe: recipes.Recipe, epoch: int
) -> torch.Tensor:
    """(n, D): each picture in one view of the recipe that holds in this epoch."""
    name = recipes.find_stage(recipes.make_stages(recipe), epoch).augment
    views = shown[PLAIN if name == "none" else name]
    rng = np.random.default_rng([recipe.seed, epoch, 1])
    chosen = torch.from_numpy(rng.integers(len(views), size=views.shape[1]))
    return views[chosen, torch.arange(views.shape[1])]


@dataclass
class _Steps:
    """What an epoch steps with."""

    optimizer: torch.optim.Optimizer
    schedule: object
    loss: losses.Loss
    factor: float
    shares: torch.Tensor

    def run(
        self,
        head: nn.Module,
        seen: torch.Tensor,
        labels: torch.Tensor,
        recipe: recipes.Recipe,
        epoch: int,
    ) -> float:
        """One pass over the pictures; returns their mean loss."""
        head.train()
        rng = np.random.default_rng([recipe.seed, epoch, 2])
        order = torch.from_numpy(rng.permutation(len(labels)))
        total, batches = 0.0, order.split(recipe.batch_size)
        for number, batch in enumerate(batches):
            self.schedule.step_update(epoch * len(batches) + number)  # type: ignore[attr-defined]
            for group in self.optimizer.param_groups:
                group["lr"] *= self.factor
            loss = self.loss(head(seen[batch]), labels[batch], self.shares[batch])
            loss = loss + self.loss.penalty(head.parameters())
            if not math.isfinite(loss.item()):
                raise FloatingPointError(
                    f"the loss should stay finite, but is not in epoch {epoch + 1}, "
                    f"step {number + 1}; lower `lr` (now {recipe.lr})"
                )
            self.optimizer.zero_grad()
            loss.backward()
            if recipe.clip_norm:
                nn.utils.clip_grad_norm_(head.parameters(), recipe.clip_norm)
            self.optimizer.step()
            total += loss.item() * len(batch)
        return total / max(len(labels), 1)


@torch.inference_mode()
def _validate(
    head: nn.Module, held: torch.Tensor, labels: np.ndarray
) -> dict[str, float]:
    if not len(labels):
        return {"valid_loss": math.nan, "valid_accuracy": math.nan}
    logits = head.eval()(held)
    truth = torch.tensor(labels)
    return {
        "valid_loss": float(nn.functional.cross_entropy(logits, truth)),
        "valid_accuracy": float((logits.argmax(1) == truth).float().mean()),
    }


def _fold_in(head: nn.Module, centre: torch.Tensor, scale: torch.Tensor) -> None:
    """Let the head take raw features: the standardising goes into its first layer."""
    inner = head.inner if isinstance(head, composites.ComposedHead) else head
    first = inner if isinstance(inner, nn.Linear) else inner[0]  # type: ignore[index]
    with torch.no_grad():
        first.weight /= scale
        first.bias -= first.weight @ centre


@torch.inference_mode()
def predict(
    head: nn.Module,
    bank: Bank,
    image_ids: np.ndarray,
    classes: Sequence[str],
    *,
    tta: Sequence[str],
    fold: int,
) -> Predictions:
    """Mean probability over the plain view and the flips asked for, as log-probs."""
    parts = []
    for name in (PLAIN, *viewing.spell(tta)):
        if name not in bank.views:
            raise ValueError(
                f"the feature bank should hold the view {name!r} for `tta`, but has "
                f"{list(bank.views)}; compute it with this `tta`"
            )
        features = torch.from_numpy(bank.take(list(bank.views).index(name), image_ids))
        logits = head.eval()(features).log_softmax(-1).clamp(min=-50.0).numpy()
        folds = np.full(len(logits), fold)
        parts.append(Predictions(image_ids, np.asarray(classes), logits, folds))
    return average(parts)


def describe(
    model: nn.Module, name: str, pixels: cache.PixelCache, way: compute.Compute
) -> dict[str, object]:
    """Provenance of a bank: model, weights, statistics, geometry, pictures."""
    sums = [float(weight.double().sum()) for weight in model.state_dict().values()]
    return {
        "model": name,
        "weights": workspace.hash_value(sums),
        "stats": [value.tolist() for value in models.input_stats(model)],
        "geometry": dataclasses.asdict(pixels.geometry),
        "pixels": Path(str(getattr(pixels.pixels, "filename", ""))).name,
        "precision": way.precision,
    }
