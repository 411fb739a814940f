"""Optimiser, schedule, SAM, and the finder of a learning rate.

Optimisers and most schedules are timm's, which alone honour layer-wise decay. One
cycle: Smith & Topin 2017, in the form of torch's `OneCycleLR` (a test holds the two
together). SAM: Foret et al., ICLR 2021. Everything is a function of the number of the
update and of the history, so that a resumed run needs no state of a schedule.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

import numpy as np
import pandas as pd
import torch
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sketchlib.training import recipe as recipes

_WARMUP_SHARE = 0.4  # of the epochs, at most
_RISE = 0.3  # share of one cycle in which the rate rises
_START, _END = 25.0, 25.0e4  # its first and last rate, as parts of the peak
_TIMM = {"cosine": "cosine", "restarts": "cosine", "step": "multistep"}


def make_optimizer(
    model: nn.Module, recipe: recipes.Recipe, lr: float
) -> torch.optim.Optimizer:
    """Timm's optimiser over the bare model, with layer-wise rates.

    Torch's own ones update all weights in one call where they can (`fused`): a third
    of the time that a loop over the weights takes on two cores.
    """
    known = signature(get_optimizer_class(recipe.optimizer)).parameters
    more: dict[str, Any] = {"fused": True} if "fused" in known else {}
    if "betas" in known and len(known["betas"].default or ()) == 2:
        more["betas"] = (recipe.momentum, recipe.beta2)
    return create_optimizer_v2(
        model,
        opt=recipe.optimizer,
        lr=lr,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        layer_decay=recipe.layer_decay or None,
        **more,
    )


class OneCycle(Scheduler):
    """Rate up for three tenths of the updates, then down to almost nothing."""

    def __init__(self, optimizer: torch.optim.Optimizer, updates: int) -> None:
        super().__init__(optimizer, "lr", t_in_epochs=False)
        self.updates = updates

    def _get_lr(self, t: int) -> list[float]:
        top = _RISE * self.updates - 1
        rising = t <= top
        done = t / max(top, 1) if rising else (t - top) / (self.updates - 1 - top)
        low = 1 / _START if rising else 1 / _END
        height = (1 + math.cos(math.pi * min(done, 1.0))) / 2
        height = 1 - height if rising else height
        return [base * (low + (1 - low) * height) for base in self.base_values]


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: recipes.Recipe, updates: int
) -> Scheduler:
    """The rate by update; `updates` is their number in an epoch.

    `plateau` is constant here: its factor comes from the history, see
    `find_factor`.
    """
    if recipe.schedule == "one_cycle":
        return OneCycle(optimizer, recipe.epochs * updates)
    cycles = recipe.cycles if recipe.schedule == "restarts" else 1
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=_TIMM.get(recipe.schedule, "constant"),
        num_epochs=recipe.epochs / cycles,  # type: ignore[arg-type]
        decay_milestones=[int(recipe.epochs * share) for share in (0.6, 0.85)],
        decay_rate=0.1,
        min_lr=0.0,
        cycle_limit=cycles,
        cycle_decay=0.5,
        warmup_lr=recipe.lr / 100,
        warmup_epochs=min(recipe.warmup_epochs, _WARMUP_SHARE * recipe.epochs),  # type: ignore[arg-type]
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    return scheduler


def find_factor(
    recipe: recipes.Recipe, epoch: int, rows: Sequence[dict[str, float]]
) -> float:
    """What the scheduled rate is multiplied with in `epoch` (from 0).

    The curriculum's factor, times what torch's `ReduceLROnPlateau` makes of the
    losses so far where the schedule is `plateau`.
    """
    factor = recipes.find_stage(recipes.make_stages(recipe), epoch).factor
    if recipe.schedule != "plateau":
        return factor
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    watcher = ReduceLROnPlateau(dummy, factor=0.1, patience=recipe.plateau_epochs - 1)
    for row in rows[:epoch]:
        held = row["valid_loss"]
        watcher.step(row["train_loss"] if math.isnan(held) else held)
    return factor * float(dummy.param_groups[0]["lr"])


@contextlib.contextmanager
def perturbed(parameters: Sequence[nn.Parameter], rho: float) -> Iterator[None]:
    """SAM's ascent: inside, the weights stand `rho` up the gradient they hold.

    On leaving, also by an error, they are exactly where they were.
    """
    moved = [weight for weight in parameters if weight.grad is not None]
    norms = [weight.grad.norm() for weight in moved if weight.grad is not None]
    scale = rho / (torch.stack(norms).norm() + 1e-12) if norms else 0.0
    kept = [weight.detach().clone() for weight in moved]
    with torch.no_grad():
        for weight in moved:
            assert weight.grad is not None
            weight.add_(weight.grad * scale)
            weight.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(moved, kept, strict=True):
                weight.copy_(before)


def suggest_lr(curve: pd.DataFrame) -> float:
    """The rate at which the smoothed loss falls most steeply.

    Args:
        curve: `lr` rising by a constant factor, `loss`; from `loop.find_lr`.
    Raises:
        ValueError: the loss never falls.
    """
    smooth = curve["loss"].ewm(alpha=0.3).mean().to_numpy()
    lowest = int(np.nanargmin(smooth))
    slopes = np.gradient(smooth)[: lowest + 1]
    if lowest < 2 or slopes.min() >= 0:
        raise ValueError(
            "the loss should fall somewhere between the lowest and the highest rate, "
            f"but it never does ({curve['lr'].iloc[0]:.1e} to "
            f"{curve['lr'].iloc[-1]:.1e}); set `find_lr` off and give `lr`"
        )
    return float(curve["lr"].iloc[int(slopes.argmin())])
