"""What is measured or computed between a task and its training.

In this order: the batch that fits (`capacity`), the loader's processes (`supply`), the
rate (`folds.with_found_lr`), the features of a frozen backbone (`folds.with_bank`).
Each leaves what it found in the run folder or the cache, so that a resumed run goes
on as it began. Limits: measured on the rows of the first fold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sketchlib.training import capacity, extras, folds, supply


@dataclass(frozen=True)
class Asked:
    """The parameters of 03_train that ask for it.

    Attributes:
        lr_rule: how the rate follows a batch that was found; see `capacity`.
        lr_batch: pictures per update that the rate is meant for.
        find_lr: measure the rate.
        bank_views: draws kept as features of a frozen backbone.
        banks: finished feature banks to use instead.
        processes: that share each batch.
    """

    lr_rule: str
    lr_batch: int
    find_lr: bool
    bank_views: int
    banks: Sequence[str]
    processes: int


def prepare(
    task: folds.Task, asked: Asked, progress: Callable[[int, int], None] | None = None
) -> tuple[folds.Task, dict[str, str]]:
    """The task with nothing left open.

    Args:
        task: see there.
        asked: what is to be measured.
        progress: called with (passes done, passes) while a feature bank is computed.
    Returns:
        The task; what was settled, in words, for the report and `run.json`.
    Raises:
        ValueError: a train-only picture is a copy of one that is held out, or a
            setting that the frozen features cannot follow.
        MemoryError: not even two pictures fit.
    """
    if asked.bank_views or asked.banks:
        task = replace(task, workers=max(task.workers, 0))  # nothing is loaded
    extras.check_no_copies(task.pixels, task.extra)
    task, found = capacity.settle(task, asked.lr_rule, asked.lr_batch, asked.processes)
    task, loaders = supply.settle(task, asked.processes)
    task = folds.with_found_lr(task) if asked.find_lr else task
    task = folds.with_bank(task, asked.bank_views, asked.banks, progress)
    return task, {"batch": found.text, "loader processes": loaders}
