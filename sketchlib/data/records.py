"""What the audit remembers of each picture, kept by path, size and time of change.

A pass writes its records straight into a mapped file that takes the store's place at
the end, so that nothing is copied and a killed pass leaves all it had finished. The
next pass takes what it finds in the store and in such remains.
Limits: a file rewritten within its time stamp's resolution, at the same size, goes
unseen; delete the cache folder then.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sketchlib import workspace
from sketchlib.data import mapped, measures

VERSION = 5  # raise it when a measure or an ink map changes its meaning


def store_path(cache_dir: Path, data_dir: Path) -> Path:
    """Where the records of the pictures of `data_dir` are kept."""
    place = workspace.hash_value([str(data_dir.resolve()), VERSION])
    return cache_dir / f"audit-{place}.npy"


@dataclass(frozen=True)
class Records:
    """The records of one manifest, some of them still to be made.

    Attributes:
        rows: (N,) `measures.RECORD`, in manifest order.
        writer: puts finished records into `rows`, from any process.
        missing: the rows that have to be read.
        store: where they are kept; None keeps nothing.
        part: the file behind `rows`, where there is one.
        remains: files of passes that ended early, taken over.
    """

    rows: np.ndarray
    writer: mapped.Writer
    missing: list[int]
    store: Path | None = None
    part: Path | None = None
    remains: tuple[Path, ...] = ()

    def keep(self) -> None:
        """Put the records in the store's place."""
        if self.store is None or self.part is None:
            return
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):  # somebody emptied the cache
            os.replace(self.part, self.store)
        for path in self.remains:
            path.unlink(missing_ok=True)


def open_records(store: Path | None, paths: list[str], keys: list[str]) -> Records:
    """What is known of the files, and room for the rest.

    Args:
        store: of `store_path`; None keeps nothing.
        paths: of each row, as in the manifest.
        keys: of `images.stamp_picture`, row by row; empty ones are never known.
    """
    remains = _find_remains(store)
    sources = [_read(path) for path in (store, *remains) if path is not None]
    sources = [found for found in sources if len(found)]
    known = _match(sources, paths, keys)
    missing = [row for row, at in enumerate(known) if at is None]
    same = [(0, row) for row in range(len(paths))]
    if sources and not remains and known == same and len(sources[0]) == len(paths):
        rows = sources[0]  # nothing changed: stays on the disk
        return Records(rows, mapped.Writer(rows), [])
    news = any(keys[row] for row in missing)  # a file that is not there is none
    if store is None or not (news or remains):
        rows = mapped.shared_zeros(len(paths), measures.RECORD)
        _take_over(rows, sources, known)
        return Records(rows, mapped.Writer(rows), missing)
    others = _of_others(sources, paths)
    part = store.with_name(f"{store.stem}.{os.getpid()}.part.npy")
    part.unlink(missing_ok=True)
    shape = (len(paths) + sum(map(len, others)),)
    rows = mapped.shared_file(part, measures.RECORD, shape)
    _take_over(rows, sources, known)
    if others:
        rows[len(paths) :] = np.concatenate(others)
    writer = mapped.Writer(rows, part)
    return Records(rows[: len(paths)], writer, missing, store, part, remains)


def _find_remains(store: Path | None) -> tuple[Path, ...]:
    """Files of passes whose process is gone."""
    if store is None:
        return ()
    found = sorted(store.parent.glob(f"{store.stem}.*.part.npy"))
    mine = [path for path in found if not _is_busy(path.name.split(".")[1])]
    return tuple(mine)


def _is_busy(number: str) -> bool:
    if not number.isdigit() or int(number) == os.getpid():
        return False  # an earlier pass of this very process
    return workspace.is_alive(int(number))


def _read(path: Path) -> np.ndarray:
    """The records of a file; none when there is no file or it is not ours."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        found = np.load(path, mmap_mode="r")
        if found.dtype == measures.RECORD:
            return found.view(np.ndarray)
    return np.empty(0, measures.RECORD)  # cut by hand or by a full disk: read anew


def _match(
    sources: list[np.ndarray], paths: list[str], keys: list[str]
) -> list[tuple[int, int] | None]:
    """(source, row in it) of every file that is known."""
    place = {
        (path, key): (number, row)
        for number, source in enumerate(sources)
        for row, (path, key) in enumerate(
            zip(source["path"].tolist(), source["key"].tolist(), strict=True)
        )
        if key
    }
    return [place.get(known) for known in zip(paths, keys, strict=True)]


def _take_over(
    rows: np.ndarray,
    sources: list[np.ndarray],
    known: list[tuple[int, int] | None],
) -> None:
    for row, at in enumerate(known):
        if at is not None:
            rows[row] = sources[at[0]][at[1]]


def _of_others(sources: list[np.ndarray], paths: list[str]) -> list[np.ndarray]:
    """Finished records of files that are not asked for now."""
    asked = set(paths)
    found = []
    for source in sources:
        finished = source["key"] != ""
        apart = [path not in asked for path in source["path"].tolist()]
        if (kept := finished & np.array(apart, bool)).any():
            found.append(source[kept])
            asked.update(found[-1]["path"].tolist())
    return found
