"""One pass over many files: workers that share the work, and patience that ends.

Few rows are read by threads, plain daemons: those of a pool are joined when Python
ends, so that a single read stuck on a dead network share would keep the process from
ending. Many rows are read by forked processes where there are any (Linux), which do
not wait for each other between two calls of OpenCV; what they write has to lie in
shared memory. Limits: a read that hangs is reported, not revived.
"""

import contextlib
import gc
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import cv2

PATIENCE_SECONDS = 120.0  # without any row taken up or chunk finished
_CHUNK = 64
_MANY = 600  # rows from which processes are worth their start


class StalledError(TimeoutError):
    """No picture was read for a long time; names the ones that are waited for."""


@contextlib.contextmanager
def quick_turns() -> Iterator[None]:
    """OpenCV stays on the calling thread, and threads take turns often.

    Python hands its lock on every 5 ms, longer than a picture takes; with 0.2 ms two
    threads read 1.6 times as fast. Processes were 1.4 times faster still.
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


Work = Callable[[Iterable[int]], None]  # is given a chunk of rows


def one_by_one(work: Callable[[int], None]) -> Work:
    """Work on a chunk that is done row by row."""

    def work_through(rows: Iterable[int]) -> None:
        for row in rows:
            work(row)

    return work_through


@dataclass(frozen=True)
class Pass:
    """How a pass over files is done.

    Attributes:
        name: what to call a row in an error.
        workers: threads or processes; 0 means one for each core.
        patience: seconds without any row taken up until the pass is given up.
        shared: whether all that the work writes lies in shared memory or in files, so
            that processes may do it.
    """

    name: Callable[[int], str]
    workers: int = 0
    patience: float = PATIENCE_SECONDS
    shared: bool = False


class _Crew:
    """Daemon threads that work through chunks of rows."""

    def __init__(self, work: Work, rows: list[int], count: int) -> None:
        self.work = work
        self.chunks = _chunks(rows, count)
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
                self.work(self._marked(chunk))
                self.results.put(len(chunk))
            except BaseException as error:  # handed to the caller's thread
                self.results.put(error)
        self.busy.pop(threading.get_ident(), None)

    def _marked(self, chunk: list[int]) -> Iterator[int]:
        for row in chunk:
            self.busy[threading.get_ident()] = row
            yield row


def _chunks(rows: list[int], count: int) -> list[list[int]]:
    """At most 64 rows each, and a few for each of `count` workers."""
    size = max(1, min(_CHUNK, len(rows) // (4 * count)))
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def run_rows(work: Work, rows: list[int], way: Pass) -> Iterator[int]:
    """Give `work` all of `rows`, chunk by chunk, on threads or by processes.

    Yields:
        How many rows each finished chunk had.
    Raises:
        StalledError: no row was taken up for `way.patience` seconds.
    """
    count = way.workers or os.cpu_count() or 1
    if way.shared and len(rows) >= _MANY and count > 1 and sys.platform == "linux":
        yield from _run_forked(work, rows, way, count)
        return
    crew = _Crew(work, rows, count)
    count = min(count, len(crew.chunks))
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
    while True:
        at = list(crew.busy.values())
        try:
            result = crew.results.get(timeout=way.patience)
        except queue.Empty:
            if list(crew.busy.values()) == at:
                raise _stalled(at, way) from None
            continue  # slow, but it moves
        if isinstance(result, BaseException):
            raise result
        return result


def _stalled(rows: Sequence[int], way: Pass) -> StalledError:
    waiting = sorted({way.name(row) for row in rows})
    return StalledError(
        f"every picture should be read within {way.patience:g} s, but "
        f"{', '.join(waiting)} was not: the disk or the network share does not "
        "answer; look whether its folder can be listed, copy the pictures to a "
        "local disk, and run again (what was read so far is kept)"
    )


# --- processes ----------------------------------------------------------------------


def _run_forked(work: Work, rows: list[int], way: Pass, count: int) -> Iterator[int]:
    """`run_rows` by processes that take the next chunk whenever they are free."""
    fork: Any = multiprocessing.get_context("fork")
    chunks = _chunks(rows, count)
    taken, busy = fork.Value("q", 0), fork.RawArray("q", [rows[0]] * count)
    ends, crew = [], []
    with quick_turns():  # also ends OpenCV's own threads, which a fork would lose
        for number in range(count):
            mine, theirs = fork.Pipe(duplex=False)
            job = (work, chunks, taken, busy, number, theirs)
            crew.append(fork.Process(target=_labour, args=(job,), daemon=True))
            crew[-1].start()
            theirs.close()
            ends.append(mine)
        try:
            yield from _gather(ends, busy, way, len(chunks))
        finally:
            for process in crew:
                process.terminate()
            for process in crew:
                process.join(5.0)


def _gather(ends: list[Connection], busy: Any, way: Pass, total: int) -> Iterator[int]:
    """How many rows each finished chunk had, until all chunks are."""
    finished = 0
    while finished < total:
        at = list(busy)
        ready = wait(ends, timeout=way.patience)
        if not ready and list(busy) == at:
            raise _stalled(at, way)
        for end in ready:
            assert isinstance(end, Connection)
            try:
                result = end.recv()
            except EOFError:  # it has nothing more to do, or was killed
                ends.remove(end)
                if not ends and finished < total:
                    raise RuntimeError(
                        "a process that reads pictures ended before its work was "
                        "done, perhaps for lack of memory; run again (what was read "
                        "so far is kept)"
                    ) from None
                continue
            if isinstance(result, BaseException):
                raise result
            finished += 1
            yield result


def _labour(job: tuple) -> None:
    """Take chunks until none is left; an error is handed to the parent."""
    work, chunks, taken, busy, number, end = job

    def marked(chunk: list[int]) -> Iterator[int]:
        for row in chunk:
            busy[number] = row
            yield row

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # a search of the parent's objects would copy their memory
    cv2.setNumThreads(1)
    try:
        while True:
            with taken.get_lock():
                at = taken.value
                taken.value += 1
            if at >= len(chunks):
                break
            work(marked(chunks[at]))
            end.send(len(chunks[at]))
    except BaseException as error:  # handed to the parent
        end.send(error)
    end.close()
