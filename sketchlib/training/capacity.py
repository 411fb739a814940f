"""The largest batch that fits, and what follows from it: parts of an update, the rate.

On a GPU it is tried: accelerate's finder walks down timm's ladder of batch sizes. On
a processor, where the system kills instead of refusing, what an update keeps in memory
is counted first. The rate follows a batch that was found by a rule: √ for Adam and its
kin (Malladi et al., NeurIPS 2022), linear for SGD (Goyal et al. 2017). What was found
is written beside the run, so that a resumed run trains the same; delete `batch.json`
to measure again. Limits: what other programs take of the same device afterwards is not
known; `memory` then splits batches.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import find_executable_batch_size
from timm.utils.decay_batch import decay_batch_step

from sketchlib import workspace
from sketchlib.data import manifest
from sketchlib.training import datasets, folds, loop

LR_RULES = ("sqrt", "linear", "none")
LEAST_UPDATES = 20  # of an epoch: a larger batch would learn too seldom, fit or not
_STEPS = 4  # sizes of the ladder between two powers of two
_SHARE = 0.5  # of the free memory of a machine without a GPU
_OVERHEAD = 2.0  # memory an update takes at its peak, over what it keeps
_FILE = "batch.json"


@dataclass(frozen=True)
class Found:
    """What an update is made of.

    Attributes:
        batch_size: pictures per update.
        accumulate: parts it is computed in.
        lr: peak rate.
        text: the same in words, with the rule.
    """

    batch_size: int
    accumulate: int
    lr: float
    text: str


def settle(
    task: folds.Task, lr_rule: str, lr_batch: int, processes: int
) -> tuple[folds.Task, Found]:
    """The task with a batch that fits, where its recipe leaves that open (0).

    Args:
        task: see there.
        lr_rule: one of LR_RULES; how the rate follows a batch that is found.
        lr_batch: pictures per update that the recipe's rate is meant for.
        processes: that share each batch.
    Raises:
        MemoryError: not even two pictures fit.
    """
    asked = task.recipe
    if asked.batch_size and asked.accumulate:
        parts = f" in {asked.accumulate} parts" * (asked.accumulate > 1)
        told = f"{asked.batch_size} pictures per update{parts}, as asked"
        return task, Found(asked.batch_size, asked.accumulate, asked.lr, told)
    key = workspace.hash_value([asked, task.network, lr_rule, lr_batch, processes])
    path = task.run_dir / _FILE
    known = _read(path, key)
    if known is None:
        known = _find(task, lr_rule, lr_batch, processes)
        workspace.write_json(path, {"asked": key, "found": known})
        print(f"notice: {known.text}")
    settled = dataclasses.replace(
        asked,
        batch_size=known.batch_size,
        accumulate=known.accumulate,
        lr=known.lr,
    )
    return dataclasses.replace(task, recipe=settled), known


def _read(path: Path, key: str) -> Found | None:
    kept = workspace.read_json(path) if path.exists() else {}
    return Found(**kept["found"]) if kept.get("asked") == key else None


def _find(task: folds.Task, lr_rule: str, lr_batch: int, processes: int) -> Found:
    asked = task.recipe
    train, _, _ = folds.make_examples(task, 0)
    attempt, device = make_attempt(task, train), task.way.device
    if asked.batch_size:
        fits = find_batch(attempt, math.ceil(asked.batch_size / processes), device)
        parts = math.ceil(asked.batch_size / (fits * processes))
        told = (
            f"{asked.batch_size} pictures per update, as asked, in {parts} parts: "
            f"{fits} fit at once on {device}; the rate stays {asked.lr:g}"
        )
        return Found(asked.batch_size, parts, asked.lr, told)
    parts = max(asked.accumulate, 1)
    useful = min(len(train.rows), max(len(train.rows) // LEAST_UPDATES, lr_batch))
    most = max(2, useful // (processes * parts))
    fits = find_batch(attempt, most, device)
    size = fits * processes * parts
    why = "more would fit" if fits >= most - most % 2 else f"the most {device} holds"
    lr = asked.lr * scale_lr(size / lr_batch, lr_rule)
    told = (
        f"{size} pictures per update, {fits} at once, {why}; "
        f"{math.ceil(len(train.rows) / size)} updates an epoch; rate {lr:.2g}, "
        f"{_tell_rule(asked.lr, size, lr_batch, lr_rule)}"
    )
    return Found(size, parts, lr, told)


def scale_lr(ratio: float, lr_rule: str) -> float:
    """The factor of the rate for a batch `ratio` times as large."""
    return {"sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}[lr_rule]


def _tell_rule(lr: float, size: int, lr_batch: int, lr_rule: str) -> str:
    if lr_rule == "none":
        return "as asked"
    sign = "√" * (lr_rule == "sqrt")
    return f"{lr:g} × {sign}({size}/{lr_batch})"


# --- what fits --------------------------------------------------------------


def find_batch(attempt: Callable[[int], None], most: int, device: str) -> int:
    """The largest even batch, up to `most`, for which `attempt` has the memory.

    Raises:
        MemoryError: not even two pictures fit.
    """
    size = max(2, most - most % 2)
    if device == "cpu":
        size = max(2, min(size, _count_affordable(attempt)))

    def reduce() -> int:
        nonlocal size
        size = decay_batch_step(size, _STEPS, no_odd=True)
        return size

    def try_size(batch_size: int) -> int:
        attempt(batch_size)
        return batch_size

    finder = find_executable_batch_size(
        try_size, starting_batch_size=size, reduce_batch_size_fn=reduce
    )
    try:
        return int(finder())
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise MemoryError(
            f"not even two pictures fit into the memory of {device}; use a smaller "
            "`side_px` or `model`"
        ) from error


def _count_affordable(attempt: Callable[[int], None]) -> int:
    """Pictures of an update that takes its share of the free memory, even."""
    small, large = (weigh_update(attempt, size) for size in (4, 8))
    each = max(1.0, (large - small) / 4)
    fixed = max(0.0, small - 4 * each)
    room = _SHARE * workspace.free_memory() / _OVERHEAD - fixed
    pictures = int(room / each)
    return pictures - pictures % 2


def weigh_update(attempt: Callable[[int], None], size: int) -> int:
    """Bytes that an update of `size` pictures keeps for its backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        attempt(size)
    return sum(kept.values())


def make_attempt(task: folds.Task, train: datasets.Examples) -> Callable[[int], None]:
    """An update of so many pictures with this very model, recipe and machine."""
    model = task.network.outline(len(manifest.class_names(task.table)))
    plain = dataclasses.replace(
        task.recipe,
        augment="none",
        curriculum=(),
        progressive=(),
        sampler="plain",
        accumulate=1,
    )

    def attempt(size: int) -> None:
        rows = np.resize(np.arange(len(train.rows)), size)
        few = datasets.Examples(train.pixels, train.rows[rows], train.labels[rows])
        recipe = dataclasses.replace(plain, batch_size=size)
        loop.try_update(model, few, recipe, task.way)

    return attempt
