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

FLAGS = "SKETCHBOOK_LAUNCH"  # environment variable with accelerate's own flags
_TASK, _EPOCHS, _LOG = "launch.json", "epochs.jsonl", "launch.log"
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
    if task.recipe.batch_size < 2 * count * task.recipe.accumulate:
        raise ValueError(
            f"`batch_size` should leave every one of {count} processes two pictures, "
            f"but is {task.recipe.batch_size}; lower `processes` or raise it"
        )
    if task.recipe.retry_nan:
        raise ValueError(
            "`retry_nan` works in one process; set it off, or `processes` 1"
        )
    path = write_task(task, fold)
    with _started(_make_command(path, count), path.parent / _LOG, count) as child:
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
    library = str(Path(workspace.__file__).resolve().parents[1])
    searched = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))
    environment = {"OMP_NUM_THREADS": threads} | os.environ
    environment["PYTHONPATH"] = os.pathsep.join(searched)
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
    told, ended = 0, False
    while not ended:
        ended = child.poll() is not None
        path = folder / _EPOCHS
        rows = workspace.read_jsonl(path) if path.exists() else []
        for row in rows[told:]:
            on_epoch({name: _as_number(value) for name, value in row.items()})
        told = len(rows)
        time.sleep(0 if ended else _POLL)
    if child.returncode:
        raise RuntimeError(
            f"the processes ended with code {child.returncode}: "
            f"{_last_words(folder / _LOG)} (whole text in {folder / _LOG})"
        )


def _as_number(value: float | None) -> float:
    return float("nan") if value is None else value


def _last_words(log: Path) -> str:
    """The exception of the process that failed first, out of the launcher's log."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [re.sub(r"^\[rank\d+\]: ", "", line) for line in text.splitlines()]
    named = [line for line in lines if line.partition(":")[0].endswith("Error")]
    words = [line for line in named if "ChildFailed" not in line] or lines
    return words[0].strip() if words else "without a word"


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
        flat = {n: tuple(v) if isinstance(v, list) else v for n, v in value.items()}
        return kind(**flat)  # type: ignore[operator]
    return kind(value) if kind is Path else value


# --- what each process runs -------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """Train the fold in the file named, as one of several processes."""
    path = Path(arguments[0])
    task, fold = read_task(path)
    PartialState(cpu=task.way.device == "cpu")  # joins the others, takes its device

    def log(row: dict[str, float]) -> None:
        if processes.rank() == 0:
            workspace.append_jsonl(path.parent / _EPOCHS, row)

    folds.train_fold(task, fold, log)
    processes.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
