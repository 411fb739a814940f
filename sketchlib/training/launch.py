"""One fold in several processes: the same `fit`, started by `accelerate launch`.

A notebook's kernel must not fork once it has touched a device, so it writes the task
into the fold's folder, starts the processes and follows the epochs they append.
`python -m sketchlib.training.launch FILE` is what each process runs. More machines:
put accelerate's flags into SKETCHBOOK_LAUNCH, and start the same command with its own
`--machine_rank` on the others, fold by fold. Limits: the folders must be on a disk
that every machine sees; more than one machine has not been tried.
"""

import contextlib
import dataclasses
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState

from sketchlib import workspace
from sketchlib.data import cache
from sketchlib.training import folds, processes
from sketchlib.training import recipe as recipes

FLAGS = "SKETCHBOOK_LAUNCH"  # environment variable with accelerate's own flags
CORES = "SKETCHBOOK_CORES"  # environment variable with the cores of a process
LOG = "launch.log"
_TASK, _EPOCHS = "launch.json", "epochs.jsonl"
_POLL = 0.2  # seconds between two looks at the epochs
_GRACE = 15.0  # seconds the processes have to end
OnEpoch = Callable[[dict[str, float]], None]


def train_fold(
    task: folds.Task, fold: int, on_epoch: OnEpoch | None = None, *, count: int
) -> folds.Result:
    """`folds.train_fold` in `count` processes; in this one when it is 1.

    A batch is shared between them, so that recipe, schedule and result are those of
    one process, within rounding.

    Raises:
        RuntimeError: the processes failed, with their last words.
    """
    if count == 1 or task.feature_bank is not None:  # heads on it take seconds
        return folds.train_fold(task, fold, on_epoch)
    recipes.check_shared(task.recipe, count)
    path = write_task(task, fold)
    with _started(_make_command(path, count), path.parent / LOG, count) as child:
        _follow(child, path.parent, on_epoch or _ignore)
    return folds.train_fold(dataclasses.replace(task, fresh=False), fold)


def _ignore(row: dict[str, float]) -> None:
    """Nobody asked."""


def _make_command(path: Path, count: int, extra: Sequence[str] = ()) -> list[str]:
    given = [*shlex.split(os.environ.get(FLAGS, "")), *extra]
    port = [] if "--main_process_port" in given else ["--main_process_port", _port()]
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--multi_gpu", "--num_processes", str(count)),
        *([] if "--num_machines" in given else ["--num_machines", "1"]),
        *("--mixed_precision", "no", "--dynamo_backend", "no", *port, *given),
        *("-m", "sketchlib.training.launch", str(path)),
    ]


def _port() -> str:
    """A port nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@contextlib.contextmanager
def _started(
    command: Sequence[str], log: Path, count: int
) -> Iterator[subprocess.Popen]:
    """The command running, its words in `log`; ended when the block is left."""
    threads = str(max(1, len(list_cores()) // count))
    environment = {"OMP_NUM_THREADS": threads} | os.environ | find_library()
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE)
        if child.poll() is None:
            child.kill()


def _follow(child: subprocess.Popen, folder: Path, on_epoch: OnEpoch) -> None:
    """Hand on every epoch as it is written, until the processes end."""
    epochs, ended = Epochs(folder, on_epoch), False
    while not ended:
        ended = child.poll() is not None
        epochs.hand_on()
        time.sleep(0 if ended else _POLL)
    if child.returncode:
        raise RuntimeError(
            f"the processes ended with code {child.returncode}: "
            f"{read_last_words(folder / LOG)} (whole text in {folder / LOG})"
        )


class Epochs:
    """The epochs that a fold trained elsewhere appends, handed on once each."""

    def __init__(self, folder: Path, on_epoch: OnEpoch) -> None:
        self.path, self.on_epoch, self.told = folder / _EPOCHS, on_epoch, 0

    def hand_on(self) -> None:
        """Hand on what is new."""
        rows = workspace.read_jsonl(self.path) if self.path.exists() else []
        for row in rows[self.told :]:
            self.on_epoch({name: _as_number(value) for name, value in row.items()})
        self.told = len(rows)


def _as_number(value: float | None) -> float:
    return float("nan") if value is None else value


def read_last_words(log: Path) -> str:
    """The exception of the process that failed first, out of its log."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [re.sub(r"^\[rank\d+\]: ", "", line) for line in text.splitlines()]
    named = [line for line in lines if line.partition(":")[0].endswith("Error")]
    words = [line for line in named if "ChildFailed" not in line] or lines
    return words[0].strip() if words else "without a word"


# --- a share of the machine --------------------------------------------------


def list_cores() -> list[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def count_gpus() -> int:
    """GPUs of NVIDIA that this process sees."""
    import torch

    return torch.cuda.device_count()


def find_library() -> dict[str, str]:
    """PYTHONPATH with which another process finds this library."""
    library = str(Path(workspace.__file__).resolve().parents[1])
    found = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(found)}


def make_environment(place: int, jobs: int) -> dict[str, str]:
    """The environment of one of `jobs` processes: its own GPU, or its share of cores.

    Args:
        place: which one, from 0.
        jobs: how many there are at a time.
    """
    environment = os.environ | find_library()
    if gpus := count_gpus():
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        seen = named.split(",") if named else [str(gpu) for gpu in range(gpus)]
        return environment | {"CUDA_VISIBLE_DEVICES": seen[place % len(seen)]}
    cores = list_cores()
    each = max(1, len(cores) // jobs)
    own = [cores[(place * each + n) % len(cores)] for n in range(each)]
    threads = min(each, workspace.thread_limit() or each)
    return environment | {
        "OMP_NUM_THREADS": str(threads),
        CORES: ",".join(map(str, own)),
    }


def pin_cores() -> None:
    """Keep this process to the cores it was given; before torch computes anything."""
    given = os.environ.pop(CORES, "")
    if given and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, given.split(",")))


# --- the task as a file -----------------------------------------------------


def write_task(task: folds.Task, fold: int) -> Path:
    """Write what a process needs to train `fold`; returns the file."""
    folder = task.run_dir / (f"fold{fold}" if fold >= 0 else "all")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _EPOCHS).unlink(missing_ok=True)
    parts = {
        field.name: _encode(getattr(task, field.name))
        for field in dataclasses.fields(task)
    }
    content = {"fold": fold, "task": parts, "asked": time.time()}
    return workspace.write_json(folder / _TASK, content)


def read_task(path: Path) -> tuple[folds.Task, int]:
    """The task and the fold in a file of `write_task`."""
    content = workspace.read_json(path)
    kinds = typing.get_type_hints(folds.Task)
    parts = {name: _decode(kinds[name], v) for name, v in content["task"].items()}
    return folds.Task(**parts), int(content["fold"])


def _encode(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return value.to_dict("list")
    if isinstance(value, cache.PixelCache):
        return {
            "file": str(Path(str(value.pixels.filename)).resolve()),  # type: ignore[attr-defined]
            "image_ids": value.image_ids.tolist(),
            "readable": value.readable.tolist(),
            "geometry": dataclasses.asdict(value.geometry),
        }
    return value


def _decode(kind: Any, value: Any) -> Any:
    if kind is pd.DataFrame:
        return pd.DataFrame(value)
    if kind is cache.PixelCache:
        return cache.PixelCache(
            np.load(value["file"], mmap_mode="r"),
            np.array(value["image_ids"], dtype=object),
            np.array(value["readable"], dtype=bool),
            cache.Geometry(**value["geometry"]),
        )
    if dataclasses.is_dataclass(kind):
        return kind(**{n: _freeze(v) for n, v in value.items()})  # type: ignore[operator]
    return kind(value) if kind is Path else value


def _freeze(value: Any) -> Any:
    """Lists as tuples, lists in lists too."""
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


# --- what each process runs -------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """Train the fold in the file named, as one of several processes."""
    pin_cores()
    path = Path(arguments[0])
    task, fold = read_task(path)
    PartialState(cpu=task.way.device == "cpu")  # joins the others, takes its device

    def log(row: dict[str, float]) -> None:
        if processes.rank() == 0:
            workspace.append_jsonl(path.parent / _EPOCHS, row)

    folds.train_fold(task, fold, log)


if __name__ == "__main__":
    main(sys.argv[1:])
    processes.leave()
