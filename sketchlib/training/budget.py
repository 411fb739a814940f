"""Minutes into folds, epochs and picture size, and back into minutes.

Before training the plan is made from the measured speed; before each fold its epochs
are counted again from the time left and the speed seen, because shared machines
drift. What was decided is written down, so that a resumed run decides the same.
Limits: a fold that has begun is not shortened.
"""

import dataclasses
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from sketchlib import workspace

SIDES_PX = (112, 96)  # smaller sizes to fall back to
FEW_EPOCHS = 6  # below this, fewer folds come first
FEW_FOLDS = 3
RECENT_EPOCHS = 7  # whose speed counts
_PREDICTING = 0.35  # of the training time that predicting a picture takes
_SIDE_POWER = 1.3  # of the side, in the time a picture takes; 2 would be its pixels


@dataclass(frozen=True)
class Plan:
    """What fits into the time.

    Attributes:
        side_px: side of the pictures.
        folds: how many folds are held out in turn.
        epochs: epochs of each.
    """

    side_px: int
    folds: int
    epochs: int


@dataclass(frozen=True)
class Load:
    """Pictures per fold, and how fast they go.

    Attributes:
        train: pictures of an epoch.
        held: pictures scored after it.
        predicted: views predicted at a fold's end.
        images_per_second: training speed at the wanted size.
        sides_px: side of each epoch of the whole recipe, where it changes.
    """

    train: int
    held: int
    predicted: int
    images_per_second: float
    sides_px: tuple[int, ...] = ()


def make_plan(wanted: Plan, seconds: float, load: Load) -> Plan:
    """The largest plan within `seconds`; 0 seconds is no limit.

    First fewer epochs, down to six; then fewer folds, down to three (the other
    pictures always train); then smaller pictures; then fewer epochs still.
    """
    if not seconds or not load.images_per_second:
        return wanted
    sides = [wanted.side_px, *(side for side in SIDES_PX if side < wanted.side_px)]
    plans = [
        Plan(side, folds, _count_epochs(seconds, wanted, side, folds, load))
        for side in sides
        for folds in range(wanted.folds, min(FEW_FOLDS, wanted.folds) - 1, -1)
    ]
    floor = min(FEW_EPOCHS, wanted.epochs)
    good = [plan for plan in plans if plan.epochs >= floor]
    plan = good[0] if good else plans[-1]
    return dataclasses.replace(plan, epochs=max(1, min(plan.epochs, wanted.epochs)))


def _count_epochs(
    seconds: float, wanted: Plan, side_px: int, folds: int, load: Load
) -> int:
    epoch, beside = _estimate(load)
    cost = cost_of(side_px, wanted.side_px)
    return int((seconds / folds - cost * beside) / (cost * epoch))


def _estimate(load: Load) -> tuple[float, float]:
    """Seconds of an epoch at the full size, and of a fold beside its epochs."""
    speed = load.images_per_second
    epoch = (load.train * _share(load) + load.held * _PREDICTING) / speed
    return epoch, load.predicted * _PREDICTING / speed


def _share(load: Load) -> float:
    """Mean cost of an epoch over one at the full size; shorter runs keep it."""
    full = max(load.sides_px, default=1)
    return statistics.fmean([cost_of(side, full) for side in load.sides_px] or [1.0])


def cost_of(side_px: int, full_px: int) -> float:
    """Time of a picture of one side over that of another, as small networks take it.

    Below the number of pixels, because part of a step does not depend on them: on one
    core EfficientNet-Lite0 took 0.41 of the time at 64 px that it took at 128.
    """
    return float((side_px / full_px) ** _SIDE_POWER)


class Clock:
    """Epochs of each fold, counted from the time that is left; see `make_clock`."""

    def __init__(
        self, plan: Plan, seconds: float, load: Load, path: Path, wanted: Plan
    ) -> None:
        self.plan = plan
        self.wanted = wanted  # whose epochs a machine faster than thought may reach
        self.seconds = seconds
        self.load = load
        self.path = path
        self._started = self._fold_started = time.monotonic()
        self._epochs: list[float] = []  # seconds of each, as if at the full size
        self._beside: list[float] = []  # seconds of each fold outside its epochs
        self._fold_seconds = 0.0  # of this fold's epochs
        self._kept = workspace.read_json(path)

    def left(self) -> float:
        """Seconds until the budget ends; infinite without one."""
        if not self.seconds:
            return float("inf")
        return self.seconds - (time.monotonic() - self._started)

    def count_epochs(self, fold: int) -> int:
        """Epochs for `fold`, which begins now; 0 when there is no time for two."""
        now = time.monotonic()
        if self._fold_seconds:
            spent = now - self._fold_started
            self._beside.append(max(0.0, spent - self._fold_seconds))
        self._fold_started, self._fold_seconds = now, 0.0
        epochs = self._kept["epochs"]
        if str(fold) not in epochs:
            epochs[str(fold)] = self._decide(fold)
            workspace.write_json(self.path, self._kept)
        return int(epochs[str(fold)])

    def _decide(self, fold: int) -> int:
        if not self.seconds or not self.load.images_per_second:
            return self.plan.epochs
        cost = cost_of(self.plan.side_px, self.wanted.side_px)
        epoch, beside = (cost * guess for guess in _estimate(self.load))
        if self._epochs:
            epoch = statistics.median(self._epochs[-RECENT_EPOCHS:]) * _share(self.load)
        if self._beside:
            beside = statistics.median(self._beside)
        affordable = int((self.left() / (self.plan.folds - fold) - beside) / epoch)
        if affordable < 2 and fold > 0:
            return 0
        return max(1, min(affordable, self.wanted.epochs))

    def count_all(self) -> int:
        """Epochs of all folds; those not decided yet are taken to be like the last."""
        decided = list(self._kept["epochs"].values())
        last = decided[-1] if decided else self.plan.epochs
        return sum(decided) + last * (self.plan.folds - len(decided))

    def saw(self, seconds: float, side_px: int) -> None:
        """An epoch on pictures of `side_px` took `seconds`, with its scoring.

        What was measured of late is the better guess for what is left; of the last
        epochs the median, because one that something else held up says little.
        """
        self._fold_seconds += seconds
        self._epochs.append(seconds / cost_of(side_px, self.plan.side_px))


def make_clock(
    wanted: Plan, minutes: float, load: Load, path: Path, *, spent: float
) -> Clock:
    """Plan within `minutes` (0 is no limit), of which `spent` seconds are gone.

    The plan is read back from `path` where the same was asked before, so that an
    interrupted run goes on as it began.
    """
    seconds = max(minutes * 60 - spent, 1.0) if minutes else 0.0
    asked = {"wanted": dataclasses.asdict(wanted), "minutes": minutes}
    kept = workspace.read_json(path) if path.exists() else {}
    if kept.get("asked") != asked:
        plan = make_plan(wanted, seconds, load)
        kept = {"asked": asked, "plan": dataclasses.asdict(plan), "epochs": {}}
        workspace.write_json(path, kept)
    return Clock(Plan(**kept["plan"]), seconds, load, path, wanted)
