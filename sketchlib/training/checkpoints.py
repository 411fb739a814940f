"""Checkpoints of one fold: written whole, read back if of the very same task.

`checkpoint.pt` is the newest state, also from inside an epoch, and `previous.pt` the
one before it; `weights-<epoch>.pt` are the epochs that may be predicted with. All are
read with `weights_only`. Limits: one writer a folder.
"""

import contextlib
import dataclasses
import os
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sketchlib import workspace
from sketchlib.training import composites, datasets, processes
from sketchlib.training.recipe import Recipe

Row = dict[str, float]
_BROKEN = (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.PickleError)


@dataclass
class Position:
    """How far a fold is.

    Attributes:
        rows: the finished epochs.
        step: updates done in the epoch after them.
        loss: sum of the losses over the pictures of these updates.
        seen: pictures of these updates; of several processes an equal share.
        seconds: spent on them.
        limit: most pictures computed at once, 0 for as many as asked.
        slower: factor of the learning rate after a retry, else 1.
    """

    rows: list[Row] = field(default_factory=list)
    step: int = 0
    loss: float = 0.0
    seen: float = 0
    seconds: float = 0.0
    limit: int = 0
    slower: float = 1.0


class Keeper:
    """Saves and restores the state of one fold in its folder."""

    def __init__(
        self, fold_dir: Path, task: dict[str, Any], recipe: Recipe, minutes: float
    ) -> None:
        self.fold_dir = fold_dir
        self.task = task
        self.recipe = recipe
        self.minutes = minutes
        self._saved = time.monotonic()
        fold_dir.mkdir(parents=True, exist_ok=True)

    @property
    def is_due(self) -> bool:
        """Whether the last save is longer ago than was asked."""
        since = time.monotonic() - self._saved
        return 0 < self.minutes * 60 <= since

    def save(self, position: Position, state: dict[str, Any]) -> None:
        """Write the newest checkpoint; the one before becomes `previous.pt`."""
        if processes.rank() > 0:
            return
        content = {"task": self.task, "position": dataclasses.asdict(position)}
        newest = self.fold_dir / "checkpoint.pt"
        with workspace.atomic_path(newest) as temporary:
            torch.save(content | state, temporary)
            if newest.exists():
                os.replace(newest, self.fold_dir / "previous.pt")
        self._saved = time.monotonic()

    def read(self) -> tuple[Position, dict[str, Any]]:
        """The newest readable checkpoint; an empty position where there is none.

        Raises:
            ValueError: it is of another task; says what differs.
        """
        for path in (self.fold_dir / "checkpoint.pt", self.fold_dir / "previous.pt"):
            if not path.exists():
                continue
            try:
                found = torch.load(path, map_location="cpu", weights_only=True)
                position = Position(**found["position"])
            except _BROKEN as error:
                told = str(error).splitlines()[0][:120] if str(error) else "cut short"
                print(f"notice: {path.name} is damaged ({told}); trying the one before")
                continue
            check_same_task(found["task"], self.task, self.fold_dir)
            return position, found
        return Position(), {}

    def keep_weights(self, rows: Sequence[Row], model: nn.Module) -> None:
        """Write the weights of the newest epoch where they may be predicted with.

        To be called before `save`, whose rows then tell which files count.
        """
        epoch = len(rows)
        if processes.rank() == 0 and epoch in choose_epochs(rows, self.recipe):
            with workspace.atomic_path(self._weights_path(epoch)) as temporary:
                torch.save(model.state_dict(), temporary)

    def prune_weights(self, rows: Sequence[Row]) -> None:
        """Remove weights that neither the newest nor the previous state asks for."""
        wanted = choose_epochs(rows, self.recipe)
        wanted |= choose_epochs(rows[:-1], self.recipe)
        for path in self.fold_dir.glob("weights-*.pt"):
            if processes.rank() == 0 and int(path.stem.split("-")[1]) not in wanted:
                path.unlink(missing_ok=True)

    def read_weights(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The weights to predict with: of one epoch, or the mean of several."""
        states = [
            torch.load(self._weights_path(epoch), map_location="cpu", weights_only=True)
            for epoch in sorted(choose_epochs(rows, self.recipe))
        ]
        return average_weights(states)

    def _weights_path(self, epoch: int) -> Path:
        return self.fold_dir / f"weights-{epoch}.pt"


def choose_epochs(rows: Sequence[Row], recipe: Recipe) -> set[int]:
    """Epochs (from 1) whose weights `recipe.keep` asks for; none for `last`.

    The best are those of the highest held-out accuracy, of equals the later; where
    nothing is held out, the last.
    """
    epochs = list(range(1, len(rows) + 1))
    if recipe.keep == "last":
        return set()
    if recipe.keep != "last_mean" and rows and rows[0]["valid_accuracy"] >= 0:
        epochs.sort(key=lambda epoch: (rows[epoch - 1]["valid_accuracy"], epoch))
    return set(epochs[-1:] if recipe.keep == "best" else epochs[-recipe.keep_epochs :])


def average_weights(
    states: Sequence[dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """Mean of each floating tensor, computed in double; others from the last."""
    if len(states) == 1:
        return states[0]
    return {
        key: torch.stack([state[key].double() for state in states])
        .mean(0)
        .to(last.dtype)
        if last.is_floating_point()
        else last
        for key, last in states[-1].items()
    }


def release(fold_dir: Path) -> None:
    """Remove the checkpoints of a finished fold; its weights stand elsewhere."""
    names = ("checkpoint.pt", "previous.pt", "best.pt")
    for path in [*(fold_dir / name for name in names), *fold_dir.glob("weights-*.pt")]:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


# --- of the same task? ------------------------------------------------------


def fingerprint(
    model: nn.Module,
    train: datasets.Examples,
    valid: datasets.Examples,
    recipe: Recipe,
) -> dict[str, object]:
    """What must be equal for a checkpoint to be continued, named piece by piece."""
    pixels = train.pixels
    task: dict[str, object] = {
        f"recipe.{name}": list(value) if isinstance(value, list | tuple) else value
        for name, value in dataclasses.asdict(recipe).items()
    }
    task |= {
        "model": [type(model).__name__, int(model.num_classes)],  # type: ignore[arg-type]
        "weights": workspace.hash_value(
            [[name, list(w.shape)] for name, w in model.state_dict().items()]
        ),
        "pixels": Path(str(getattr(pixels.pixels, "filename", ""))).name,
    }
    if (head := composites.find_head(model)) is not None:
        task["targets"] = workspace.hash_value(head.blocks.places.tolist())
    for name, value in dataclasses.asdict(pixels.geometry).items():
        task[f"geometry.{name}"] = value
    for name, part in (("training", train), ("held-out", valid)):
        task[f"{name} pictures"] = workspace.hash_value(list(part.image_ids))
        task[f"{name} labels or class order"] = workspace.hash_value(
            part.labels.tolist()
        )
    task["picture weights"] = workspace.hash_value(train.weights.tolist())
    return task


def check_same_task(
    found: dict[str, Any], wanted: dict[str, Any], fold_dir: Path
) -> None:
    """Raise ValueError, naming what differs, unless both are of the same task."""
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
