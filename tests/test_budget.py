import dataclasses

import pytest

from sketchlib.training import budget

WANTED = budget.Plan(side_px=128, folds=5, epochs=12)
LOAD = budget.Load(train=2000, held=500, predicted=3000, images_per_second=100)


@pytest.mark.parametrize("seconds", [60, 300, 900, 1500, 5000])
def test_the_plan_fits_into_the_time(seconds):
    plan = budget.make_plan(WANTED, seconds, LOAD)
    speed = 100 * (128 / plan.side_px) ** 2
    needed = plan.folds * plan.epochs * LOAD.train / speed
    assert needed <= seconds or plan.epochs == 1
    assert plan.epochs <= WANTED.epochs


def test_without_a_limit_or_with_plenty_nothing_changes():
    assert budget.make_plan(WANTED, 0, LOAD) == WANTED
    assert budget.make_plan(WANTED, 1e6, LOAD) == WANTED


def test_epochs_go_first_then_folds_then_size():
    assert budget.make_plan(WANTED, 1000, LOAD) == budget.Plan(128, 5, 8)
    assert budget.make_plan(WANTED, 500, LOAD).folds == 3
    assert budget.make_plan(WANTED, 300, LOAD).side_px < 128
    assert budget.make_plan(WANTED, 10, LOAD) == budget.Plan(96, 3, 1)


def test_a_machine_that_is_faster_than_thought_gets_more_epochs(tmp_path):
    clock = budget.make_clock(WANTED, 12, LOAD, tmp_path / "budget.json", spent=0)
    first = clock.count_epochs(0)
    assert clock.count_all() == 5 * first
    clock.saw(LOAD.train / 150, 128)
    second = clock.count_epochs(1)
    assert first < second <= WANTED.epochs
    assert clock.count_all() == first + 4 * second


def test_a_machine_that_slows_down_gets_fewer_epochs(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    clock = budget.make_clock(WANTED, 20, LOAD, tmp_path / "budget.json", spent=0)
    first = clock.count_epochs(0)
    assert first >= 8
    clock.saw(LOAD.train / 50, 128)
    now[0] += 2 * first * LOAD.train / 100
    assert clock.count_epochs(1) < first
    now[0] = 20 * 60
    assert clock.count_epochs(2) == 0


def test_the_first_fold_of_smaller_pictures_gets_all_epochs_there_is_time_for(tmp_path):
    clock = budget.make_clock(WANTED, 5, LOAD, tmp_path / "budget.json", spent=0)
    assert clock.plan.side_px < 128
    assert clock.count_epochs(0) == clock.plan.epochs


def test_one_epoch_that_was_held_up_does_not_decide_the_rest(tmp_path):
    clock = budget.make_clock(WANTED, 20, LOAD, tmp_path / "budget.json", spent=0)
    first = clock.count_epochs(0)
    for speed in (100.0, 101.0, 99.0, 30.0):
        clock.saw(LOAD.train / speed, 128)
    assert clock.count_epochs(1) >= first - 1


def test_time_spent_before_training_counts(tmp_path):
    fresh = budget.make_clock(WANTED, 10, LOAD, tmp_path / "a.json", spent=0)
    late = budget.make_clock(WANTED, 10, LOAD, tmp_path / "b.json", spent=300)
    assert late.left() == pytest.approx(fresh.left() - 300, abs=1)
    assert late.plan.folds * late.plan.epochs < fresh.plan.folds * fresh.plan.epochs


def test_a_resumed_run_decides_the_same(tmp_path):
    path = tmp_path / "budget.json"
    clock = budget.make_clock(WANTED, 15, LOAD, path, spent=0)
    decided = clock.count_epochs(0)
    slower = budget.Load(2000, 500, 3000, 10)
    again = budget.make_clock(WANTED, 15, slower, path, spent=0)
    assert again.plan == clock.plan
    assert again.count_epochs(0) == decided
    other = budget.make_clock(WANTED, 30, slower, path, spent=0)
    assert other.count_epochs(0) != decided or other.plan != clock.plan


def test_epochs_on_smaller_pictures_are_cheaper(tmp_path):
    half = dataclasses.replace(LOAD, sides_px=(64,) * 6 + (128,) * 6)
    plain = budget.make_plan(WANTED, 1000, LOAD)
    assert budget.make_plan(WANTED, 1000, half).epochs > plain.epochs
    clock = budget.make_clock(WANTED, 20, half, tmp_path / "budget.json", spent=0)
    other = budget.make_clock(WANTED, 20, half, tmp_path / "other.json", spent=0)
    for one, side in ((clock, 64), (other, 128)):
        one.count_epochs(0)
        one.saw(LOAD.train / 50 * budget.cost_of(side, 128), side)
    assert clock.count_epochs(1) == other.count_epochs(1)  # one machine, told twice


def test_what_a_fold_takes_beside_its_epochs_is_learned(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    epochs = []
    for beside in (0.0, 60.0):
        now[0] = 0.0
        path = tmp_path / f"{beside}.json"
        wanted = dataclasses.replace(WANTED, epochs=40)
        clock = budget.make_clock(wanted, 20, LOAD, path, spent=0)
        count = clock.count_epochs(0)
        for _ in range(count):
            clock.saw(15.0, 128)
        now[0] += count * 15.0 + beside
        epochs.append(clock.count_epochs(1))
    # what the slower fold took beside, here and in what is left, is four epochs each
    assert epochs[1] < epochs[0] - 3


def test_the_time_is_used_and_kept(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    wanted = dataclasses.replace(WANTED, epochs=40)
    clock = budget.make_clock(wanted, 20, LOAD, tmp_path / "budget.json", spent=0)
    for fold in range(5):
        for _ in range(clock.count_epochs(fold)):
            now[0] += 12.0
            clock.saw(12.0, 128)
        now[0] += 20.0
    assert 0 <= clock.left() < 30
