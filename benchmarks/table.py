"""What the benchmarks measured, as one table of ratios.

Each script calls `write_rows`; `python benchmarks/table.py` prints what there is.
"""

import argparse
import os
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median

from sketchlib import workspace

RESULTS = workspace.repo_root() / "runs" / "bench"
PACKAGES = ("torch", "timm", "albumentations", "opencv-python-headless", "numpy")


def ratio_row(
    what: str, pairs: list[tuple[float, float]], goal: float, unit: str
) -> dict[str, object]:
    """A row about ours against a peer's, measured in turns.

    Args:
        what: both sides, in words.
        pairs: (ours, theirs), each larger is better.
        goal: the ratio wanted, at least.
        unit: of both sides.
    """
    ratios = [ours / theirs for ours, theirs in pairs]
    return {
        "what": what,
        "ours": f"{_round(median(ours for ours, _ in pairs))} {unit}",
        "theirs": f"{_round(median(theirs for _, theirs in pairs))} {unit}",
        "ratio": round(median(ratios), 2),
        "spread": tell_spread(ratios),
        "goal": f"≥ {goal:g}" if goal else "-",
        "met": "-" if not goal else "yes" if median(ratios) >= goal else "no",
    }


def _round(value: float) -> str:
    """Three digits that count, written out: 12,700 and 0.0976."""
    return f"{float(f'{value:.3g}'):,.10g}"


def limit_row(
    what: str,
    values: Sequence[float],
    unit: str,
    limit: float | None,
    *,
    told: Callable[[Sequence[float]], float] = median,
) -> dict[str, object]:
    """A row about ours alone, a value a round, that is to stay under a limit.

    Args:
        what: in words.
        values: one a round.
        unit: of the values and of the limit.
        limit: the most there may be; None where there is no goal.
        told: which of them counts; memory has to stay under it in every round.
    """
    value = told(values)
    return plain_row(
        what,
        f"{value:z.2f} {unit}",
        "-" if limit is None else f"≤ {limit:g} {unit}",
        None if limit is None else value <= limit,
        tell_spread(values),
    )


def tell_spread(values: Sequence[float]) -> str:
    """The least and the greatest."""
    joint = " to " if min(values) < 0 else "-"
    return f"{min(values):z.2f}{joint}{max(values):z.2f}"


def plain_row(
    what: str, ours: str, goal: str, met: bool | None, spread: str = "-"
) -> dict[str, object]:
    """A row with one figure in words; `met` is None where there is no goal."""
    told = "-" if met is None else "yes" if met else "no"
    return {
        "what": what,
        "ours": ours,
        "theirs": "-",
        "ratio": "-",
        "spread": spread,
        "goal": goal,
        "met": told,
    }


def write_rows(name: str, rows: list[dict[str, object]]) -> None:
    """Keep the rows of one script, with machine and versions, and print them."""
    machine = {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }
    workspace.write_json(RESULTS / f"{name}.json", {"machine": machine, "rows": rows})
    print(format_rows(rows))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def format_rows(rows: list[dict[str, object]]) -> str:
    """A Markdown table."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *[list(row.values()) for row in rows]]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    found = [workspace.read_json(path) for path in sorted(RESULTS.glob("*.json"))]
    if not found:
        raise SystemExit("no benchmark has run yet; `make bench` runs them all")
    print(format_rows([row for one in found for row in one["rows"]]))
    print()
    print(", ".join(f"{key} {value}" for key, value in found[-1]["machine"].items()))


if __name__ == "__main__":
    main()
