"""Folds side by side leave what folds in turn leave."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from recipes import make
from test_folds import task  # noqa: F401

from sketchlib.training import beside, folds, launch, loop


@pytest.fixture
def four(task, monkeypatch):  # noqa: F811
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # equal sums in equal order
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    frame = task.folds.assign(fold=np.arange(len(task.folds)) % 4)
    yield dataclasses.replace(task, folds=frame, recipe=make(epochs=2))
    torch.set_num_threads(threads)


def collect(rows):
    return lambda fold: lambda row: rows.append((fold, row["epoch"]))


def check_equal(one, numbers, other):
    for fold in numbers:
        ours, theirs = folds.train_fold(one, fold), folds.train_fold(other, fold)
        assert ours.oof.logits.tobytes() == theirs.oof.logits.tobytes()
        assert ours.test.logits.tobytes() == theirs.test.logits.tobytes()
        assert ours.history["valid_loss"].equals(theirs.history["valid_loss"])


def test_folds_at_once_predict_what_folds_in_turn_predict(four, monkeypatch):
    rows = []
    numbers = [0, 1, -1]
    ready = beside.train_folds(four, numbers, collect(rows), jobs=2)
    real = loop.fit
    monkeypatch.setattr(loop, "fit", None)  # the loop that follows only reads
    for fold in numbers:
        launch.train_fold(ready.with_epochs(2), fold, count=1)
    monkeypatch.setattr(loop, "fit", real)
    serial = dataclasses.replace(four, run_dir=four.run_dir.with_name("serial"))
    check_equal(ready, numbers, serial)
    assert sorted(rows) == sorted((fold, n) for fold in numbers for n in (1, 2))


def test_one_at_a_time_starts_nothing(four):
    assert beside.train_folds(four, [0, 1], collect([]), jobs=1) is four
    assert not four.run_dir.exists()


def test_a_fold_that_fails_ends_the_others_and_says_why(four):
    wrong = dataclasses.replace(
        four, network=dataclasses.replace(four.network, model="test_resnett")
    )
    with pytest.raises(RuntimeError, match="fold. ended with code 1: .*test_resnet"):
        beside.train_folds(wrong, [0, 1], collect([]), jobs=2)


def test_what_is_finished_is_not_begun_again_unless_asked(four, monkeypatch):
    folds.train_fold(four, 0)
    begun = []
    real = launch.write_task
    monkeypatch.setattr(
        launch, "write_task", lambda one, fold: begun.append(fold) or real(one, fold)
    )
    beside.train_folds(four, [0, 1], collect([]), jobs=2)
    assert begun == [1]
    begun.clear()
    fresh = dataclasses.replace(four, fresh=True)
    ready = beside.train_folds(fresh, [0], collect([]), jobs=2)
    assert begun == [0]
    assert not ready.fresh  # or the loop that follows would train a second time


def test_below_the_target_no_other_fold_is_begun(four):
    hopeless = make(epochs=1, target_accuracy=0.99, target_epochs=1)
    asked = dataclasses.replace(four, recipe=hopeless)
    beside.train_folds(asked, [0, 1, 2, 3], collect([]), jobs=2)
    done = {path.parent.name for path in four.run_dir.glob("fold*/done.json")}
    assert {"fold0", "fold1"} >= done and len(done) >= 1


def test_every_process_has_its_own_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch, "count_gpus", lambda: 0)
    monkeypatch.setattr(launch, "list_cores", lambda: [2, 3, 4, 5, 6])
    shares = [launch.make_environment(place, 2) for place in (0, 1)]
    assert [share[launch.CORES] for share in shares] == ["2,3", "4,5"]
    assert {share["OMP_NUM_THREADS"] for share in shares} == {"2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch.make_environment(0, 2)["OMP_NUM_THREADS"] == "1"


def test_every_process_has_its_own_gpu_of_those_that_are_given(monkeypatch):
    monkeypatch.setattr(launch, "count_gpus", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    shares = [launch.make_environment(place, 3) for place in range(3)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["4", "7", "4"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert launch.make_environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_process_keeps_to_its_cores(monkeypatch):
    before = os.sched_getaffinity(0)
    monkeypatch.setenv(launch.CORES, str(min(before)))
    try:
        launch.pin_cores()
        assert os.sched_getaffinity(0) == {min(before)}
        assert launch.CORES not in os.environ  # its children share out anew
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.slow
def test_folds_on_a_ray_cluster_predict_the_same(four):
    pytest.importorskip("ray")
    rows = []
    ready = beside.train_folds(four, [0, 1, 2], collect(rows), jobs=2, engine="ray")
    serial = dataclasses.replace(four, run_dir=four.run_dir.with_name("serial"))
    check_equal(ready, [0, 1, 2], serial)
    assert sorted(rows) == [(fold, n) for fold in (0, 1, 2) for n in (1, 2)]
