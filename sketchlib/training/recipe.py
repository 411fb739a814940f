"""`Recipe`: how to train, as one flat, frozen value that refuses nonsense.

The fields are grouped into parts, which `Recipe` joins; every one comes from the
notebook's parameter of the same name, and nothing has a default here. What changes
with the epoch (a curriculum, growing pictures) is read from lists of short texts.
Limits: what depends on the data or the model is checked where those are known.
"""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

LOSSES = ("cross_entropy", "focal", "soft_f1", "bce")
CLASS_WEIGHTS = ("none", "inverse", "effective")
SCHEDULES = ("cosine", "restarts", "one_cycle", "step", "plateau", "constant")
KEEPS = ("last", "best", "last_mean", "best_mean")
NORMS = ("still", "folded", "learn")
SAMPLERS = ("plain", "weighted", "up", "down")
_COMMON = ("adamw", "adam", "sgd", "radam", "lamb", "nadamw")  # spares importing timm


@dataclass(frozen=True)
class _Pictures:
    """What is shown to the model.

    Attributes:
        augment: recipe name of `transforms`.
        curriculum: changes of it, `epoch:recipe:factor`, where the factor of the
            learning rate holds from that epoch on; epochs count from 1.
        progressive: sides by epoch, `epoch:side_px`; later epochs keep the last one,
            epochs before the first and all scoring use the full side.
        mixup_alpha: Beta parameter of mixup, 0 is off.
        cutmix_alpha: Beta parameter of CutMix, 0 is off.
        mix_off_epochs: last epochs without mixing, ≥ 0.
    """

    augment: str
    curriculum: Sequence[str]
    progressive: Sequence[str]
    mixup_alpha: float
    cutmix_alpha: float
    mix_off_epochs: int


@dataclass(frozen=True)
class _Sampling:
    """Which rows train, and how often.

    Attributes:
        data_fraction: share of the training rows, stratified, groups whole; 0-1.
        sampler: `plain` shows each row once an epoch, `weighted` draws rows with
            equal chances for the classes, `up` repeats rows of small classes, `down`
            leaves out rows of large ones, others each epoch.
    """

    data_fraction: float
    sampler: str


@dataclass(frozen=True)
class _Loss:
    """What is made small.

    Attributes:
        loss: cross_entropy, focal, soft_f1 (of the whole batch) or bce.
        label_smoothing: 0-1, softens the targets of every loss.
        focal_gamma: of the focal loss, ≥ 0; 0 is cross-entropy.
        class_weights: none, inverse (of the class frequency) or effective (number of
            pictures, Cui et al., CVPR 2019).
        l1: weight of the sum of absolute weights, ≥ 0.
        l2: weight of half the sum of squared weights, ≥ 0.
    """

    loss: str
    label_smoothing: float
    focal_gamma: float
    class_weights: str
    l1: float
    l2: float


@dataclass(frozen=True)
class _Steps:
    """How the weights move.

    Attributes:
        epochs: passes over the training rows, ≥ 1.
        batch_size: pictures per optimiser step, ≥ 2; 0 is left to `capacity`.
        accumulate: the step is computed in this many parts, ≥ 1; 0 likewise.
        optimizer: a name timm knows.
        sam_rho: radius of sharpness-aware minimisation around it, 0 is off.
        lr: peak learning rate, > 0.
        momentum: of optimisers that have one, 0-1; beta 1 of Adam and its kin.
        beta2: memory of their squared gradients, 0-1. A short one follows a rising
            loss before it becomes a spike.
        schedule: cosine (to zero), restarts (`cycles` cosines, each half as high),
            one_cycle (rises for three tenths), step (× 0.1 at 60 and 85 %), plateau
            (× 0.1 after `plateau_epochs` without a lower loss) or constant.
        cycles: cosines of `restarts`, ≥ 2.
        plateau_epochs: patience of `plateau`, ≥ 1.
        warmup_epochs: epochs of linear warm-up, ≥ 0; no more than two fifths of
            `epochs` are used.
        weight_decay: ≥ 0.
        layer_decay: lr factor per layer from the head down, 0-1; 0 is off.
        clip_norm: largest gradient norm, 0 is off.
        frozen: train only the classifier, and what `unfreeze_last` opens.
        unfreeze_last: with `frozen`, last stages or blocks that train too, ≥ 0.
        norm: batch-norm statistics: `still` keeps the pretrained ones, which a short
            fine-tune of few drawings needs; `folded` does too, and trains with the
            norms multiplied into the convolutions, which is faster; `learn` follows
            the batches.
    """

    epochs: int
    batch_size: int
    accumulate: int
    optimizer: str
    sam_rho: float
    lr: float
    momentum: float
    beta2: float
    schedule: str
    cycles: int
    plateau_epochs: int
    warmup_epochs: float
    weight_decay: float
    layer_decay: float
    clip_norm: float
    frozen: bool
    unfreeze_last: int
    norm: str


@dataclass(frozen=True)
class _Ending:
    """When it ends, and which weights are kept.

    Attributes:
        ema_decay: decay of the averaged weights, 0-1; 0 is off.
        score_fraction: share of the held-out pictures scored after each epoch, over 0
            to 1; predictions are of all of them.
        keep: weights used to predict: `last`; `best` on the held-out fold, whose
            score then flatters itself a little; the mean of the `last_mean` or
            `best_mean` epochs.
        keep_epochs: epochs in such a mean, ≥ 2.
        patience: epochs without a better held-out loss before stopping, 0 is off.
        target_accuracy: held-out accuracy to have reached, 0-1; 0 is off.
        target_epochs: after this many epochs, ≥ 1.
        retry_nan: after a loss that is not finite, go on once from the last
            checkpoint with a tenth of the learning rate.
        deterministic: let torch use only operations that repeat bit by bit.
        seed: ≥ 0.
    """

    ema_decay: float
    score_fraction: float
    keep: str
    keep_epochs: int
    patience: int
    target_accuracy: float
    target_epochs: int
    retry_nan: bool
    deterministic: bool
    seed: int


@dataclass(frozen=True)
class Recipe(_Ending, _Steps, _Loss, _Sampling, _Pictures):
    """How to train; the fields are those of its parts, flat."""

    def __post_init__(self) -> None:
        check_recipe(self)


@dataclass(frozen=True)
class Stage:
    """What holds from an epoch (from 0) on: recipe, factor of the rate, side."""

    epoch: int
    augment: str
    factor: float
    side_px: int  # 0 is the full side


# --- checks -----------------------------------------------------------------


def check_recipe(recipe: Recipe) -> None:
    """Raise ValueError for a value out of range or settings that contradict."""
    _check_names(recipe)
    _check_ranges(recipe)
    _check_contradictions(recipe)
    from sketchlib.training import transforms

    for stage in make_stages(recipe):
        transforms.check_recipe(stage.augment)


def _check_names(recipe: Recipe) -> None:
    for name, choices in (
        ("loss", LOSSES),
        ("class_weights", CLASS_WEIGHTS),
        ("schedule", SCHEDULES),
        ("keep", KEEPS),
        ("norm", NORMS),
        ("sampler", SAMPLERS),
    ):
        _check_choice(name, getattr(recipe, name), choices)
    if recipe.optimizer not in _COMMON:
        from timm.optim import list_optimizers

        if recipe.optimizer not in list_optimizers():
            raise ValueError(
                "`optimizer` should be one timm knows, such as adamw, sgd, lamb, but "
                f"{recipe.optimizer!r} came"
            )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(value, choices, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"`{name}` should be one of {', '.join(choices)}, but {value!r} came{hint}"
        )


def _check_ranges(recipe: Recipe) -> None:
    infinite = math.inf
    ranges: dict[str, tuple[bool, str]] = {
        "epochs": (recipe.epochs >= 1, "at least 1"),
        "batch_size": (recipe.batch_size == 0 or recipe.batch_size >= 2, "0 or over 1"),
        "accumulate": (recipe.accumulate >= 0, "0 or more"),
        "lr": (0 < recipe.lr < infinite, "over 0"),
        "sam_rho": (0 <= recipe.sam_rho < infinite, "0 or more"),
        "momentum": (0 <= recipe.momentum < 1, "0-1, under 1"),
        "beta2": (0 <= recipe.beta2 < 1, "0-1, under 1"),
        "cycles": (recipe.cycles >= 2, "at least 2"),
        "plateau_epochs": (recipe.plateau_epochs >= 1, "at least 1"),
        "weight_decay": (0 <= recipe.weight_decay < infinite, "0 or more"),
        "layer_decay": (0 <= recipe.layer_decay < 1, "0-1, under 1"),
        "label_smoothing": (0 <= recipe.label_smoothing < 1, "0-1, under 1"),
        "focal_gamma": (0 <= recipe.focal_gamma < infinite, "0 or more"),
        "l1": (0 <= recipe.l1 < infinite, "0 or more"),
        "l2": (0 <= recipe.l2 < infinite, "0 or more"),
        "mixup_alpha": (0 <= recipe.mixup_alpha < infinite, "0 or more"),
        "cutmix_alpha": (0 <= recipe.cutmix_alpha < infinite, "0 or more"),
        "data_fraction": (0 < recipe.data_fraction <= 1, "over 0, up to 1"),
        "ema_decay": (0 <= recipe.ema_decay < 1, "0-1, under 1"),
        "score_fraction": (0 < recipe.score_fraction <= 1, "over 0, up to 1"),
        "clip_norm": (recipe.clip_norm >= 0, "0 or more"),
        "keep_epochs": (recipe.keep_epochs >= 2, "at least 2"),
        "patience": (recipe.patience >= 0, "0 or more"),
        "target_accuracy": (0 <= recipe.target_accuracy < 1, "0-1, under 1"),
        "target_epochs": (recipe.target_epochs >= 1, "at least 1"),
        "seed": (recipe.seed >= 0, "0 or more"),
        "warmup_epochs": (recipe.warmup_epochs >= 0, "0 or more"),
    }
    for name, (holds, wanted) in ranges.items():
        if not holds:
            got = getattr(recipe, name)
            raise ValueError(f"`{name}` should be {wanted}, but {got!r} came")


def _check_contradictions(recipe: Recipe) -> None:
    """Settings that are each allowed, but not together."""
    clashes = {
        "`loss` soft_f1 is a figure of the whole batch, but `accumulate` computes it "
        "in parts; set `accumulate` to 1": recipe.loss == "soft_f1"
        and recipe.accumulate != 1,
        "`schedule` one_cycle has its own warm-up, but `warmup_epochs` asks for "
        "another; set `warmup_epochs` to 0": recipe.schedule == "one_cycle"
        and recipe.warmup_epochs > 0,
        "`schedule` restarts needs an epoch a cycle, but `cycles` is more than "
        "`epochs`; lower `cycles`": recipe.schedule == "restarts"
        and recipe.cycles > recipe.epochs,
        "`sampler` already balances the classes, but `class_weights` weighs them "
        "again; use one of the two": recipe.sampler != "plain"
        and recipe.class_weights != "none",
        "`unfreeze_last` opens the end of a frozen backbone, but `frozen` is false; "
        "set `frozen: true`, or `unfreeze_last: 0`": (
            recipe.unfreeze_last > 0 and not recipe.frozen
        ),
        "`frozen` trains the classifier alone, but `layer_decay` slows the layers "
        "below it; set one of them off": recipe.frozen and recipe.layer_decay > 0,
        "`keep` averages `keep_epochs` epochs, but there are fewer `epochs`; lower "
        "`keep_epochs`": recipe.keep.endswith("_mean")
        and recipe.keep_epochs > recipe.epochs,
    }
    for told, holds in clashes.items():
        if holds:
            raise ValueError(told)


# --- what changes with the epoch --------------------------------------------


def make_stages(recipe: Recipe) -> list[Stage]:
    """The stages in order, the first from epoch 0; see `curriculum`, `progressive`.

    Raises:
        ValueError: a text is not of the form, or the epochs do not rise.
    """
    changes = _read_changes("curriculum", recipe.curriculum, "epoch:recipe:factor")
    sizes = _read_changes("progressive", recipe.progressive, "epoch:side_px")
    stages = [Stage(0, recipe.augment, 1.0, 0)]
    for epoch in sorted({*changes, *sizes}):
        last = stages[-1]
        augment, factor, side_px = last.augment, last.factor, last.side_px
        if epoch in changes:
            augment, factor = changes[epoch][0], _read_factor(changes[epoch][1])
        if epoch in sizes:
            side_px = _read_side(sizes[epoch][0])
        stages.append(Stage(epoch, augment, factor, side_px))
    return stages[1:] if len(stages) > 1 and stages[1].epoch == 0 else stages


def find_stage(stages: Sequence[Stage], epoch: int) -> Stage:
    """The stage that holds in `epoch`, counted from 0."""
    return [stage for stage in stages if stage.epoch <= epoch][-1]


def _read_changes(name: str, texts: Sequence[str], form: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for text in texts:
        epoch, *rest = str(text).split(":")
        well = epoch.isdigit() and len(rest) == form.count(":")
        if not well or int(epoch) < 1 or any(int(epoch) - 1 <= e for e in found):
            raise ValueError(
                f"`{name}` should list `{form}` with epochs that rise from 1, but "
                f"{text!r} came in {list(texts)}"
            )
        found[int(epoch) - 1] = rest
    return found


def _read_factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise ValueError(
            f"a factor of the learning rate in `curriculum` should be a number over "
            f"0, but {text!r} came"
        )
    return factor


def _read_side(text: str) -> int:
    if not text.isdigit() or int(text) < 16:
        raise ValueError(
            f"a side in `progressive` should be at least 16 pixels, but {text!r} came"
        )
    return int(text)


def check_sides(recipe: Recipe, side_px: int, fixed: bool) -> None:
    """Raise ValueError where `progressive` asks for what pixels or model cannot give.

    Args:
        recipe: see there.
        side_px: side of the cached pictures.
        fixed: the model takes one size only.
    """
    sides = [stage.side_px for stage in make_stages(recipe) if stage.side_px]
    if sides and fixed:
        raise ValueError(
            "`progressive` changes the side of the pictures, but this `model` takes "
            "one size only; leave `progressive` empty, or choose a convolutional model"
        )
    if sides and max(sides) > side_px:
        raise ValueError(
            f"`progressive` should stay within `side_px` ({side_px}), but {max(sides)} "
            "came; raise `side_px`"
        )


def check_banked(recipe: Recipe) -> None:
    """Raise ValueError for settings that frozen features cannot follow."""
    plain = {
        "mixup_alpha": 0.0,
        "cutmix_alpha": 0.0,
        "accumulate": 1,
        "sampler": "plain",
        "sam_rho": 0.0,
        "ema_decay": 0.0,
        "keep": "last",
        "patience": 0,
        "target_accuracy": 0.0,
        "unfreeze_last": 0,
    }
    for name, value in plain.items():
        if getattr(recipe, name) != value:
            raise ValueError(
                f"heads on a feature bank train with `{name}` {value}, but "
                f"{getattr(recipe, name)!r} came; set `bank_views` to 0 for it"
            )
    if recipe.batch_size == 0:
        raise ValueError(
            "`batch_size` 0 finds the largest batch of the whole model, but heads on a "
            "feature bank are small; name a `batch_size`"
        )
    if recipe.progressive or not recipe.frozen:
        raise ValueError(
            "`bank_views` keeps features of a frozen backbone at one size; set "
            "`frozen: true` and `progressive: []`, or `bank_views: 0`"
        )


def check_settled(recipe: Recipe) -> None:
    """Raise ValueError where `capacity` has still to find the batch."""
    if not recipe.batch_size or not recipe.accumulate:
        raise ValueError(
            f"`batch_size` ({recipe.batch_size}) and `accumulate` ({recipe.accumulate})"
            " should be known before training; call `capacity.settle` first"
        )


def check_shared(recipe: Recipe, processes: int) -> None:
    """Raise ValueError for settings that several processes cannot share."""
    least = 2 * processes * recipe.accumulate
    if processes > 1 and 0 < recipe.batch_size < least:
        raise ValueError(
            f"`batch_size` should leave every one of {processes} processes two pictures"
            f", but is {recipe.batch_size}; lower `processes` or raise it"
        )
    if processes > 1 and recipe.retry_nan:
        raise ValueError(
            "`retry_nan` works in one process; set it off, or `processes` 1"
        )


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """The same recipe for fewer epochs; what counts epochs shrinks to fit."""
    share = epochs / recipe.epochs
    keeps = max(2, min(recipe.keep_epochs, epochs))
    return dataclasses.replace(
        recipe,
        epochs=epochs,
        mix_off_epochs=min(recipe.mix_off_epochs, epochs),
        cycles=max(2, min(recipe.cycles, epochs)),
        schedule="cosine"
        if recipe.schedule == "restarts" and epochs < 2
        else recipe.schedule,
        keep="last" if recipe.keep.endswith("_mean") and epochs < 2 else recipe.keep,
        keep_epochs=keeps,
        curriculum=_shift(recipe.curriculum, share),
        progressive=_shift(recipe.progressive, share),
    )


def _shift(texts: Sequence[str], share: float) -> list[str]:
    """The changes at the same share of the training; of two at once the later."""
    moved: dict[int, str] = {}
    for text in texts:
        epoch, rest = str(text).split(":", 1)
        moved[1 + round((int(epoch) - 1) * share)] = rest
    return [f"{epoch}:{rest}" for epoch, rest in moved.items()]


# --- when to stop -----------------------------------------------------------


def find_stop(recipe: Recipe, history: "Sequence[dict] | pd.DataFrame") -> str:
    """Why training ends before its last epoch, in words; empty where it goes on.

    It depends on the history alone, so that a resumed run stops where it had to.
    """
    rows = list(history) if isinstance(history, list) else history.to_dict("records")  # type: ignore[union-attr]
    if not rows or math.isnan(rows[-1]["valid_loss"]):
        return ""  # nothing is held out
    losses = [row["valid_loss"] for row in rows]
    since = len(losses) - 1 - losses.index(min(losses))
    if recipe.patience and since >= recipe.patience:
        return f"no lower held-out loss for {since} epochs"
    reached = max(row["valid_accuracy"] for row in rows)
    asked = recipe.target_accuracy and len(rows) >= recipe.target_epochs
    if asked and reached < recipe.target_accuracy:
        return (
            f"below the target: {reached:.3f} of {recipe.target_accuracy:.3f} after "
            f"{len(rows)} epochs"
        )
    return ""
