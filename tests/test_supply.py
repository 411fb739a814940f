"""Loader processes: as many as the measure asks for, and never another number."""

import dataclasses
import time

import pytest
from recipes import make
from test_folds import task  # noqa: F401

from sketchlib.training import datasets, folds, supply


class Slow(datasets.SketchDataset):
    """A disk that takes its time: pictures wait without using the processor."""

    def draw(self, index):
        time.sleep(0.004)
        return super().draw(index)


@pytest.fixture
def quick(task, monkeypatch):  # noqa: F811
    monkeypatch.setattr(supply, "SECONDS", 0.3)
    monkeypatch.setattr(supply.launch, "list_cores", lambda: [0, 1])
    way = dataclasses.replace(task.way, images_per_second=2000.0)
    return dataclasses.replace(task, workers=supply.AUTO, way=way, recipe=make())


def test_a_slow_loader_gets_processes(quick, monkeypatch):
    monkeypatch.setattr(datasets, "SketchDataset", Slow)
    ready, told = supply.settle(quick, 1)
    assert ready.workers == 2
    assert told.startswith("2; pictures a second: ")
    assert told.endswith("the model takes 2,000")


def test_a_fast_loader_gets_none(quick):
    slow_model = dataclasses.replace(quick.way, images_per_second=10.0)
    ready, _ = supply.settle(dataclasses.replace(quick, way=slow_model), 1)
    assert ready.workers == 0


def test_the_measure_is_remembered_for_the_machine(quick, monkeypatch):
    first, _ = supply.settle(quick, 1)
    monkeypatch.setattr(supply, "time_loader", None)
    assert supply.settle(quick, 1)[0].workers == first.workers


def test_a_number_that_is_asked_for_is_taken(quick, monkeypatch):
    monkeypatch.setattr(supply, "time_loader", None)
    asked = dataclasses.replace(quick, workers=3)
    assert supply.settle(asked, 1) == (asked, "3, as asked")


def test_a_speed_that_nobody_measured_is_measured(quick):
    unknown = dataclasses.replace(quick.way, images_per_second=0.0)
    _, told = supply.settle(dataclasses.replace(quick, way=unknown), 1)
    assert int(told.rpartition(" ")[2].replace(",", "")) > 0


@pytest.mark.parametrize(
    ("rates", "consumed", "on_cpu", "count"),
    [
        ({0: 1000, 1: 900, 2: 1800, 4: 3000}, 900, False, 1),  # enough, and no more
        ({0: 100, 1: 95, 2: 190, 4: 380}, 900, False, 4),  # still too few
        ({0: 5000, 1: 4000, 2: 8000}, 100, False, 0),  # two hundredths are not worth it
        ({0: 1000, 1: 900, 2: 1200}, 1000, True, 1),  # turns would halve the speed
        ({0: 1000, 1: 900, 2: 1200}, 30, True, 0),  # the cores are the model's
    ],
)
def test_the_fewest_that_keep_the_speed_are_taken(rates, consumed, on_cpu, count):
    assert supply.choose(rates, consumed, 2, on_cpu=on_cpu) == count


def test_numbers_to_try_double_up_to_the_cores():
    assert supply.count_steps(1) == [0, 1]
    assert supply.count_steps(6) == [0, 1, 2, 4]


def test_what_was_measured_changes_no_number(task):  # noqa: F811
    results = []
    for workers in (0, 2):
        own = dataclasses.replace(
            task, workers=workers, run_dir=task.run_dir.with_name(f"w{workers}")
        )
        results.append(folds.train_fold(own, 0).oof.logits.tobytes())
    assert results[0] == results[1]
