"""A command that outlives its terminal.

The same command is started again in a session of its own, its output in a log file:
closing the terminal, or losing the connection to a server, ends nothing. Limits: a
machine that kills all of a user's processes at logout (systemd's KillUserProcesses)
still does; `loginctl enable-linger` is the way out.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sketchlib import workspace

_FIRST_SECONDS = 2.0  # a refusal comes within them and is shown at once


def start(given: Sequence[str], place: Path) -> int:
    """Start `sketch` with the arguments `given` without their `--detach`.

    Args:
        given: the command's arguments, already checked.
        place: the log is written beside it, as `<place>.log`.
    Returns:
        0 when it runs, else the exit code it ended with at once.
    """
    log = place.with_name(f"{place.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    library = str(Path(workspace.__file__).resolve().parents[1])
    searched = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
    arguments = [argument for argument in given if argument != "--detach"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sketchlib.workbook.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(searched)},
            start_new_session=True,
        )
    try:
        code = process.wait(_FIRST_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"runs on as process {process.pid}; it writes {log}")
        print(f"follow: sketch runs --watch --runs {log.parent}")
        print(f"stop:   kill -INT {process.pid}", flush=True)
        return 0
    print(log.read_text(encoding="utf-8", errors="replace"), end="")
    return code
