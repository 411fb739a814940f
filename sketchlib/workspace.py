"""Paths, run folders, atomic writes, provenance and seeds.

The ground floor: it imports nothing else of ours and nothing heavy. A *run* is
a folder `<runs>/<name>/` whose `run.json` says what was asked, with which
versions and data, and how it ended. Files are replaced, never half-written.
Limits: atomicity is that of `os.replace` on the file system at hand.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any, TypeVar

STATES = (
    "queued",
    "running",
    "done",
    "failed",
    "killed",
    "timeout",
    "interrupted",
    "incomplete",
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, file-size limit
_PACKAGES = ("sketchlib", "torch", "timm", "accelerate", "albumentations", "numpy")


# --- where things are -------------------------------------------------------


def repo_root() -> Path:
    """The folder that holds `notebooks/` and `params/`.

    `SKETCHBOOK_ROOT` overrides it, for a library installed without the repository.
    """
    named = os.environ.get("SKETCHBOOK_ROOT")
    return Path(named).resolve() if named else Path(__file__).resolve().parents[1]


def resolve_path(path: str | os.PathLike[str]) -> Path:
    """Absolute form of a path given to a notebook.

    A relative path means the repository root, so that a notebook reads the same
    files whether JupyterLab, papermill or the CLI started it; the current folder
    comes second.
    """
    given = Path(path).expanduser()
    from_root = repo_root() / given
    if given.is_absolute() or from_root.exists() or not given.exists():
        return Path(os.path.abspath(from_root))
    return Path(os.path.abspath(given))


# --- writing ----------------------------------------------------------------


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary sibling of `path` that takes its place when the block succeeds.

    Raises:
        OSError: the disk is full; the previous file is untouched, and the message
            says how many bytes are free.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.stem[:40]}-", suffix=target.suffix
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        if error.errno in _FULL:
            raise _tell_full(error, target, "the previous file was kept") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _tell_full(error: OSError, target: Path, kept: str) -> OSError:
    """The same error, saying how much room there is and what to do."""
    free = shutil.disk_usage(target.parent).free
    return OSError(
        error.errno,
        f"no room to write `{target.name}`: {free:,} bytes are free in "
        f"{target.parent}; {kept}. Free some space and start the same command again",
    )


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Replace `path` by `text` (UTF-8), whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Replace `path` by indented JSON; dataclasses, paths and numpy scalars allowed.

    NaN and infinity, which JSON has not, become null.
    """
    plain = json.loads(
        json.dumps(value, default=_as_json), parse_constant=lambda _: None
    )
    text = json.dumps(plain, indent=2, ensure_ascii=False)
    return write_text(path, text + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The JSON value in `path`.

    Raises:
        ValueError: it is not JSON, naming the file and the line.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`{path}` should hold JSON, but line {error.lineno} does not parse "
            f"({error.msg}); delete the file to have it written anew"
        ) from error


def append_jsonl(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Add one line of JSON and flush it to the disk, so that a kill loses nothing.

    After a line that a kill or a full disk cut short, the record starts a new one.

    Raises:
        OSError: the disk is full, with the bytes that are free.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, ensure_ascii=False, default=_as_json) + "\n"
    try:
        with target.open("ab+") as out:
            out.write(b"\n" * _is_cut(out) + line.encode())
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        if error.errno in _FULL:
            raise _tell_full(error, target, "the earlier lines were kept") from error
        raise


def _is_cut(lines: IO[bytes]) -> bool:
    """Whether the file's last line has no end."""
    if lines.seek(0, os.SEEK_END) == 0:
        return False
    lines.seek(-1, os.SEEK_END)
    return lines.read(1) != b"\n"


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; lines cut by a kill are left out."""
    records = []
    with Path(path).open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
    return records


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "item"):  # numpy scalar
        return value.item()
    return str(value)


# --- processes of this machine ----------------------------------------------


def is_alive(pid: int) -> bool:
    """Whether a process has this number; a dead one not yet collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return read_stat(pid)[:1] not in (["Z"], ["X"])


def read_stat(pid: int) -> list[str]:
    """The facts of a process, its state first; empty where the system tells none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


# --- who made it ------------------------------------------------------------


def hash_files(paths: list[Path]) -> str:
    """Short sha256 over the contents of `paths`, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def hash_value(value: Any) -> str:
    """Short sha256 of a JSON-able value; equal values give equal hashes."""
    text = json.dumps(value, sort_keys=True, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def provenance() -> dict[str, Any]:
    """Versions, commit and machine, for `run.json`; takes milliseconds.

    `threads` is that of `thread_limit`: it decides how sums are rounded.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "versions": versions,
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": thread_limit(),
    }


def thread_limit() -> int:
    """Processor threads this process was told to use; 0 where nobody said."""
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(told) if told.isdigit() else 0


def _commit() -> str:
    """The checked-out commit, `+` behind it when files differ; empty without git."""
    command = ["git", "-C", str(repo_root()), "describe", "--always", "--dirty=+"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()


T = TypeVar("T")


def pick(kind: type[T], namespace: dict[str, Any]) -> T:
    """An instance of a dataclass from the values of the same names in `namespace`."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    return kind(**{field.name: namespace[field.name] for field in fields})


def seed_everything(seed: int, *, devices: bool = True) -> None:
    """Seed `random`, numpy and, where it is loaded, torch.

    Args:
        seed: ≥ 0.
        devices: torch's generators on GPUs, too, which takes half a millisecond even
            where there is none.
    """
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        (torch if devices else torch.default_generator).manual_seed(seed)


# --- runs -------------------------------------------------------------------


@dataclasses.dataclass
class Run:
    """An open run: its folder and what `run.json` says so far."""

    dir: Path
    record: dict[str, Any]
    _started: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def name(self) -> str:
        return self.dir.name

    @property
    def seconds(self) -> float:
        """Seconds since the run was opened."""
        return time.perf_counter() - self._started

    def note(self, **facts: Any) -> None:
        """Add facts to `run.json` at once."""
        self.record.update(facts)
        write_json(self.dir / "run.json", self.record)

    def log(self, **values: Any) -> None:
        """Append one record to `metrics.jsonl`."""
        append_jsonl(self.dir / "metrics.jsonl", values)

    def progress(self, text: str, fraction: float, seconds_left: float) -> None:
        """Tell whoever watches how far the work is; `fraction` is 0-1."""
        append_jsonl(
            self.dir / "progress.jsonl",
            {
                "text": text,
                "fraction": round(fraction, 4),
                "seconds_left": round(seconds_left, 1),
            },
        )

    def finish(self, **facts: Any) -> None:
        """Close the run: state `done`, seconds and peak memory beside `facts`."""
        seconds = round(self.seconds, 1)
        self.note(
            **facts,
            state="done",
            seconds=seconds,
            peak_memory_mb=peak_memory_mb(),
            finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        )


def open_run(
    runs_dir: str | os.PathLike[str],
    run_name: str,
    parameters: dict[str, Any],
    **facts: Any,
) -> Run:
    """Open `<runs_dir>/<run_name>/` and write its `run.json` with state `running`.

    What a runner wrote there before the notebook started (who asked, when) is kept.

    Raises:
        ValueError: `run_name` is not a plain folder name.
    """
    check_run_name(run_name)
    folder = resolve_path(runs_dir) / run_name
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {}
    if (folder / "run.json").exists():
        earlier = read_json(folder / "run.json")
        record = {key: earlier[key] for key in ("runner",) if key in earlier}
    record |= {
        "name": run_name,
        "state": "running",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "pid": os.getpid(),
        "parameters": parameters,
        **provenance(),
        **facts,
    }
    run = Run(folder, record)
    run.note()
    return run


def check_run_name(name: str) -> None:
    """Raise ValueError unless `name` can be one folder inside the runs folder."""
    bad = not name or name in (".", "..") or any(mark in name for mark in '/\\\0:{}"')
    if bad or len(name.encode()) > 200:
        raise ValueError(
            f"`run_name` must be a plain folder name, but {name!r} came; use letters, "
            "digits, `-`, `_` and `.`"
        )


def peak_memory_mb() -> int:
    """Largest resident memory of this process so far, in MiB; 0 where unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak // (2**20 if sys.platform == "darwin" else 2**10))


def free_memory() -> int:
    """Bytes of memory that can be had, the control group's limit included."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, IndexError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable"))
        available = int(found.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        available = min(available, limit - used)
    return available
