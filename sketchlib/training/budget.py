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
    """Pictures per fold: `train` and `held` each epoch, `predicted` views once.

    `images_per_second` is the training speed measured at the wanted size.
    """

    train: int
    held: int
    predicted: int
    images_per_second: float


def make_plan(wanted: Plan, seconds: float, load: Load) -> Plan:
    """The largest plan within `seconds`; 0 seconds is no limit.

    First fewer epochs, down to six; then fewer folds, down to three (the other
    pictures always train); then smaller pictures; then fewer epochs still. Time is
    taken as proportional to the number of pixels.
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
    speed = load.images_per_second * (wanted.side_px / side_px) ** 2
    predicting = load.predicted * _PREDICTING / speed
    epoch = (load.train + load.held * _PREDICTING) / speed
    return int((seconds / folds - predicting) / epoch)


class Clock:
    """Epochs of each fold, counted from the time that is left; see `make_clock`."""

    def __init__(
        self, plan: Plan, seconds: float, load: Load, path: Path, most: int
    ) -> None:
        self.plan = plan
        self.most = most  # epochs a fold, when the machine is faster than thought
        self.seconds = seconds
        self.load = load
        self.path = path
        self._started = time.monotonic()
        self._speeds: list[float] = []
        self._kept = workspace.read_json(path)

    def left(self) -> float:
        """Seconds until the budget ends; infinite without one."""
        if not self.seconds:
            return float("inf")
        return self.seconds - (time.monotonic() - self._started)

    def count_epochs(self, fold: int) -> int:
        """Epochs for `fold`; 0 when there is no time for two of them."""
        epochs = self._kept["epochs"]
        if str(fold) not in epochs:
            epochs[str(fold)] = self._decide(fold)
            workspace.write_json(self.path, self._kept)
        return int(epochs[str(fold)])

    def _decide(self, fold: int) -> int:
        if not self.seconds or not self.load.images_per_second:
            return self.plan.epochs
        folds_left = self.plan.folds - fold
        affordable = _count_epochs(
            self.left(), self.plan, self.plan.side_px, folds_left, self.load
        )
        if affordable < 2 and fold > 0:
            return 0
        return max(1, min(affordable, self.most))

    def count_all(self) -> int:
        """Epochs of all folds; those not decided yet are taken to be like the last."""
        decided = list(self._kept["epochs"].values())
        last = decided[-1] if decided else self.plan.epochs
        return sum(decided) + last * (self.plan.folds - len(decided))

    def saw(self, images_per_second: float) -> None:
        """Take what was measured of late as the better guess for what is left.

        The median of the last epochs: one that something else held up says little.
        """
        self._speeds.append(images_per_second)
        speed = statistics.median(self._speeds[-RECENT_EPOCHS:])
        self.load = dataclasses.replace(self.load, images_per_second=speed)


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
    return Clock(Plan(**kept["plan"]), seconds, load, path, wanted.epochs)
