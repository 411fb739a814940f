"""How many loader processes: measured, against what the model consumes.

Pictures a second of the loader are measured with none, one, two, … processes for a
second or two each and remembered for this machine; the fewest are taken with which
training would be within a twentieth of the fastest. Numbers do not depend on it.
Limits: a busy machine measures low; delete `loaders.json` to measure again.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping

from torch.utils.data import DataLoader

from sketchlib import workspace
from sketchlib.training import compute, datasets, folds, launch, recipe

AUTO = -1
SECONDS = 1.5  # of each measure
_GAIN = 0.05  # of the speed; fewer processes are taken for less
_FILE = "loaders.json"


def settle(task: folds.Task, processes: int) -> tuple[folds.Task, str]:
    """The task with a number of loader processes, where it leaves that open (-1).

    Args:
        task: see there.
        processes: that train, each with loaders of its own.
    Returns:
        The task, and what was found in words.
    """
    if task.workers != AUTO:
        return task, f"{task.workers}, as asked"
    cores = max(1, len(launch.list_cores()) // processes)
    consumed = task.way.images_per_second or _time_model(task)
    rates = _read_rates(task, cores)
    count = choose(rates, consumed, cores, on_cpu=task.way.device == "cpu")
    told = ", ".join(f"{rate:,.0f} with {n}" for n, rate in sorted(rates.items()))
    text = f"{count}; pictures a second: {told}; the model takes {consumed:,.0f}"
    print(f"notice: loader processes {text}")
    return dataclasses.replace(task, workers=count), text


def choose(
    rates: Mapping[int, float], consumed: float, cores: int, *, on_cpu: bool
) -> int:
    """The fewest loader processes that leave training almost as fast as any.

    Args:
        rates: pictures a second by number of processes; 0 is there.
        consumed: pictures a second the model takes from memory.
        cores: of the processor.
        on_cpu: whether the model computes on these cores too.
    """
    speeds = {
        count: _expect(rate, rates[0], consumed, count, cores if on_cpu else 0)
        for count, rate in rates.items()
    }
    best = max(speeds.values())
    return min(n for n, speed in speeds.items() if speed >= (1 - _GAIN) * best)


def _expect(
    rate: float, alone: float, consumed: float, count: int, cores: int
) -> float:
    """Pictures a second of training; without processes the two take turns."""
    if count == 0:
        return 1 / (1 / alone + 1 / consumed)
    if cores == 0:  # the model has a device of its own
        return min(rate, consumed)
    return min(rate, 1 / (1 / consumed + 1 / (alone * cores)))  # cores are shared


def count_steps(cores: int) -> list[int]:
    """Numbers of processes to try: 0, 1, 2, 4, … up to the cores."""
    return [0, *(2**n for n in range(cores.bit_length()) if 2**n <= cores)]


def _read_rates(task: folds.Task, cores: int) -> dict[int, float]:
    train, _, _ = folds.make_examples(task, 0)
    stages = recipe.make_stages(task.recipe)
    dataset = datasets.SketchDataset(
        train, task.recipe.augment, task.recipe.seed, stages
    )
    key = workspace.hash_value(
        [compute.describe_machine(), cores, stages, task.pixels.geometry]
        + [task.recipe.batch_size]
    )
    path = task.cache_dir / _FILE
    known = workspace.read_json(path) if path.exists() else {}
    if key not in known:
        known[key] = {
            str(count): time_loader(dataset, task.recipe.batch_size, count)
            for count in count_steps(cores)
        }
        workspace.write_json(path, known)
    return {int(count): rate for count, rate in known[key].items()}


def time_loader(dataset: datasets.SketchDataset, batch_size: int, count: int) -> float:
    """Pictures a second that a loader with `count` processes delivers."""
    size = min(batch_size, max(2, len(dataset) // 4))
    loader = datasets.make_loader(dataset, size, workers=count, training=True)
    batches = _repeat(loader)
    for _ in range(1 + 2 * count):  # the start, and what was loaded ahead
        next(batches)
    seen, started = 0, time.perf_counter()
    for images, _, _ in batches:
        seen += len(images)
        passed = time.perf_counter() - started
        if passed >= SECONDS:
            break
    return round(seen / passed, 1)


def _repeat(loader: DataLoader) -> Iterator:
    while True:
        yield from loader


def _time_model(task: folds.Task) -> float:
    classes = int(task.table["label"].max()) + 1
    batch = (task.recipe.batch_size, 1, task.network.side_px)
    model = task.network.outline(classes)
    return compute.measure_speed(model, batch, task.recipe.norm, task.way)
