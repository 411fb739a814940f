"""One pass over many files: threads that share the work, and patience that ends.

The threads are plain daemons: those of a pool are joined when Python ends, so that a
single read stuck on a dead network share would keep the process from ending.
Limits: a read that hangs is reported, not revived; its thread stays until the end.
"""

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2

PATIENCE_SECONDS = 120.0  # without a single finished chunk
_CHUNK = 16


class StalledError(TimeoutError):
    """No picture was read for a long time; names the ones that are waited for."""


@contextlib.contextmanager
def quick_turns() -> Iterator[None]:
    """OpenCV stays on the calling thread, and threads take turns often.

    Python hands its lock on every 5 ms, longer than a picture takes; with 0.2 ms two
    threads read 1.6 times as fast. Processes were 1.4 times faster still, but need
    an importable main module or a fork beside running threads.
    """
    interval, threads = sys.getswitchinterval(), cv2.getNumThreads()
    sys.setswitchinterval(0.0002)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
        sys.setswitchinterval(interval)


@contextlib.contextmanager
def one_thread_each(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool for reckoning, never for reading; 0 workers: one for each core."""
    with quick_turns(), ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        yield pool


@dataclass(frozen=True)
class Pass:
    """How a pass over files is done.

    Attributes:
        name: what to call a row in an error.
        workers: threads; 0 means one for each core.
        patience: seconds without any finished chunk until the pass is given up.
    """

    name: Callable[[int], str]
    workers: int = 0
    patience: float = PATIENCE_SECONDS


class _Crew:
    """Daemon threads that work through chunks of rows."""

    def __init__(self, work: Callable[[int], None], rows: list[int]) -> None:
        self.work = work
        self.chunks = [rows[at : at + _CHUNK] for at in range(0, len(rows), _CHUNK)]
        self.results: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
        self.todo = iter(list(self.chunks))
        self.lock = threading.Lock()
        self.busy: dict[int, int] = {}  # thread → the row it is at
        self.stopped = False

    def labour(self) -> None:
        """Take chunks until none is left, or an error ends this thread."""
        while not self.stopped:
            with self.lock:
                chunk = next(self.todo, None)
            if chunk is None:
                break
            try:
                for row in chunk:
                    self.busy[threading.get_ident()] = row
                    self.work(row)
                self.results.put(len(chunk))
            except BaseException as error:  # handed to the caller's thread
                self.results.put(error)
        self.busy.pop(threading.get_ident(), None)


def run_rows(work: Callable[[int], None], rows: list[int], way: Pass) -> Iterator[int]:
    """Call `work` for each of `rows` on threads; yields how many each chunk had.

    Raises:
        StalledError: nothing was finished for `way.patience` seconds.
    """
    crew = _Crew(work, rows)
    count = min(way.workers or os.cpu_count() or 1, len(crew.chunks))
    threads = [threading.Thread(target=crew.labour, daemon=True) for _ in range(count)]
    with quick_turns():
        for thread in threads:
            thread.start()
        try:
            for _ in crew.chunks:
                yield _next_result(crew, way)
        finally:
            crew.stopped = True
            end = time.monotonic() + min(way.patience, 5.0)
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))


def _next_result(crew: _Crew, way: Pass) -> int:
    try:
        result = crew.results.get(timeout=way.patience)
    except queue.Empty:
        waiting = sorted({way.name(row) for row in list(crew.busy.values())})
        raise StalledError(
            f"every picture should be read within {way.patience:g} s, but "
            f"{', '.join(waiting)} was not: the disk or the network share does not "
            "answer; look whether its folder can be listed, copy the pictures to a "
            "local disk, and run again (what was read so far is kept)"
        ) from None
    if isinstance(result, BaseException):
        raise result
    return result
