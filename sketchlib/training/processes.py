"""Several processes on one fit: who this one is, and what all of them found together.

A launcher (`launch`, torchrun, SLURM) starts the processes; everything here is a
plain no-op in a single one. Limits: the helpers are collective, so that every process
has to call them, in the same order.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import distributed, nn


def count() -> int:
    """How many processes work on this fit."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """The number of this process, from 0; the first one writes the files."""
    return distributed.get_rank() if _together() else 0


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def wait() -> None:
    """Go on when all processes are here."""
    if count() > 1:
        PartialState().wait_for_everyone()


def leave() -> NoReturn:
    """End this process, its work done and written, without Python's own end.

    gloo's threads release the last gathered tensors a moment after everybody has
    them, for which they ask Python; one that is ending aborts instead (exit code 134,
    "terminate called without an active exception"), whether or not the group was
    destroyed before, as long as a model keeps it. That is a fold trained and lost.
    """
    wait()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def add_up(values: Sequence[float]) -> list[float]:
    """The sums over all processes, number by number."""
    if count() == 1:
        return list(values)
    state = PartialState()
    mps = state.device.type == "mps"  # has no float64
    dtype = torch.float32 if mps else torch.float64
    parts = torch.tensor(list(values), device=state.device, dtype=dtype)
    return reduce(parts, reduction="sum").tolist()


def share_buffers(model: nn.Module) -> None:
    """Give all processes the first one's buffers, such as batch-norm statistics."""
    if count() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def join_rows(places: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """All processes' rows in order, each once.

    Args:
        places: (n,) position of each of this process's rows among all N.
        rows: (n, K) what it found.
    Returns:
        (N, K), the same in every process.
    """
    if count() == 1:
        return rows
    parts = gather_object([(places, rows)])
    order = np.concatenate([part[0] for part in parts])
    joined = np.concatenate([part[1] for part in parts])
    return joined[np.argsort(order)]
