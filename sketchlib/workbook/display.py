"""Progress on the screen: lines when headless, one live bar on a terminal.

A notebook tells by appending records to `progress.jsonl` in its run folder: `text`,
and where known `fraction` (0-1) and `seconds_left`. The file is the interface: it
works across processes and machines, and outlives a dead kernel.
"""

import contextlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import IO, Any

_QUIET_SECONDS = 2.0  # between two headless lines; the last one is always shown


class Tail:
    """New records of a growing JSON-lines file, each once."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0

    def read(self) -> list[dict[str, Any]]:
        """The records added since the last call; a line still being written waits."""
        try:
            with self.path.open("rb") as lines:
                lines.seek(self.position)
                whole = lines.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self.position += len(whole[0]) + len(whole[1])
        records = []
        for line in whole[0].splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
        return [record for record in records if isinstance(record, dict)]


def read_progress(folder: Path) -> dict[str, Any]:
    """The newest progress record of a run; empty before the first."""
    records = Tail(folder / "progress.jsonl").read()
    return records[-1] if records else {}


def format_seconds(seconds: float) -> str:
    """`8 s`, `4:10 min` or `2:05 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class Display:
    """Progress on standard output: lines, and on a terminal one live bar."""

    def __init__(self, name: str, out: IO[str] | None = None) -> None:
        self.name, self.out = name, out or sys.stdout
        self.live = self.out.isatty()
        self._bar, self._told = "", -_QUIET_SECONDS

    def cell(self, event: dict[str, Any]) -> None:
        """One finished code cell; its bar goes with it."""
        self._erase()
        mark = "✓" if event["status"] == "completed" else "✗"
        place = f"{event['index'] + 1:>3}/{event['total']}"
        self.line(
            f"{mark} {place}  {event['id'] or 'cell'}  "
            f"{format_seconds(event['seconds'] or 0)}"
        )

    def progress(self, record: dict[str, Any]) -> None:
        """One record of `progress.jsonl`: a line, or on a terminal the live bar."""
        text = format_progress(record)
        if not self.live:
            is_last = record.get("fraction") == 1
            if is_last or time.monotonic() - self._told >= _QUIET_SECONDS:
                self._told = time.monotonic()
                self.line(f"  {text}")
            return
        self._erase()
        width = shutil.get_terminal_size().columns - 1
        self._bar = f"  {_draw_bar(record.get('fraction'))}{text}"[:width]
        self.out.write(self._bar)
        self.out.flush()

    def line(self, text: str) -> None:
        """One line that stays, above the live bar."""
        bar = self._erase()
        print(f"{self.name}  {text}", file=self.out, flush=True)
        if bar:
            self._bar = bar
            self.out.write(bar)
            self.out.flush()

    def close(self) -> None:
        """Take the live bar away."""
        self._erase()

    def _erase(self) -> str:
        bar, self._bar = self._bar, ""
        if bar:
            self.out.write("\r\x1b[K")
            self.out.flush()
        return bar


def format_progress(record: dict[str, Any]) -> str:
    """`epoch 3/12 · 25 % · 4:10 min left`."""
    parts = [str(record.get("text", ""))]
    if isinstance(record.get("fraction"), int | float):
        parts.append(f"{record['fraction']:.0%}".replace("%", " %"))
    if isinstance(record.get("seconds_left"), int | float):
        parts.append(f"{format_seconds(record['seconds_left'])} left")
    return " · ".join(part for part in parts if part)


def _draw_bar(fraction: Any, cells: int = 20) -> str:
    if not isinstance(fraction, int | float):
        return ""
    full = round(min(max(fraction, 0), 1) * cells)
    return "━" * full + "─" * (cells - full) + "  "
