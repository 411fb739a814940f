"""Arrays that several processes fill: mapped to be read, written past the mapping.

To touch a new page of a mapped file costs several times what writing it does, and a
pass over pictures touches nothing but new pages. Both ways show the same bytes.
Limits: where there is no `os.pwritev` (Windows), rows go through the mapping.
"""

import contextlib
import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sketchlib import workspace

_AT_ONCE = 256  # rows in one call; systems take up to 1,024


def shared_zeros(count: int, kind: np.dtype) -> np.ndarray:
    """(count,) records that forked processes write into."""
    if count == 0:
        return np.zeros(0, kind)
    memory = mmap.mmap(-1, count * kind.itemsize)  # anonymous and shared
    return np.frombuffer(memory, kind)


def shared_file(path: Path, kind: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros in a new file, mapped, that forked processes write into.

    Raises:
        OSError: there is no room for all of it; no file is left.
    """
    with workspace.atomic_path(path) as temporary:
        made = np.lib.format.open_memmap(temporary, "w+", kind, shape)
        if hasattr(os, "posix_fallocate"):  # a full disk shows here, not as a crash
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, made.offset + made.nbytes)
    return np.load(path, mmap_mode="r+").view(np.ndarray)


class Writer:
    """Puts rows into an array, whichever way is the fastest.

    Args:
        array: (N, …) as of `shared_zeros`, or the whole of the file.
        path: the .npy file that `array` maps, if it does.
    """

    def __init__(self, array: np.ndarray, path: Path | None = None) -> None:
        self.array = array
        self._file: int | None = None
        if path is None or not hasattr(os, "pwritev"):
            return
        with contextlib.suppress(FileNotFoundError):  # another run put it in its place
            self._file = os.open(path, os.O_WRONLY)
            self._start = os.fstat(self._file).st_size - array.nbytes
            weakref.finalize(self, os.close, self._file)

    def put(self, rows: Sequence[int], made: Sequence[np.ndarray]) -> None:
        """Write `made[k]`, of the shape of one row, to row `rows[k]`.

        Raises:
            OSError: the disk is full after all.
        """
        if self._file is None:
            self._assign(rows, made)
            return
        bare: list[Any] = [
            np.ascontiguousarray(one).reshape(-1).view(np.uint8) for one in made
        ]
        size = self.array.nbytes // max(len(self.array), 1)
        for run in _runs(rows):
            at, whole = self._start + size * rows[run.start], size * len(bare[run])
            if os.pwritev(self._file, bare[run], at) < whole:  # a signal, a full disk
                self._assign(rows[run], made[run])

    def flush(self) -> None:
        """Have the disk take what was written, while others go on writing."""
        if self._file is not None:
            getattr(os, "fdatasync", os.fsync)(self._file)

    def _assign(self, rows: Sequence[int], made: Sequence[np.ndarray]) -> None:
        for row, one in zip(rows, made, strict=True):
            self.array[row : row + 1] = one


def _runs(rows: Sequence[int]) -> Iterator[slice]:
    """Where one row follows the other."""
    start = 0
    for at in range(1, len(rows) + 1):
        ends = at == len(rows) or rows[at] != rows[at - 1] + 1
        if ends or at - start == _AT_ONCE:
            yield slice(start, at)
            start = at
