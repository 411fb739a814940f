import dataclasses
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from recipes import make, make_task

from sketchlib.data import cache
from sketchlib.training import folds, launch


@pytest.fixture(scope="module")
def task(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    return make_task(
        world,
        folder,
        recipe=make(epochs=2, norm="still", batch_size=9, ema_decay=0.9),
        tta=("hflip",),
        run_dir=folder / "one",
    )


@pytest.fixture(scope="module")
def pair(task):
    """(one process's result, two processes' result, epochs that were reported)."""
    rows = []
    two = dataclasses.replace(task, run_dir=task.run_dir.with_name("two"))
    return (
        folds.train_fold(task, 0),
        launch.train_fold(two, 0, rows.append, count=2),
        rows,
    )


def test_the_last_batch_is_shared_too(task):
    rest = len(folds.make_examples(task, 0)[0].rows) % task.recipe.batch_size
    assert rest >= 4  # two pictures for each of two processes, and an uneven batch


def test_f51_two_processes_give_the_metrics_of_one(pair):
    one, two, _ = pair
    assert one.history["train_loss"].iloc[1] < one.history["train_loss"].iloc[0]
    columns = ["epoch", "train_loss", "valid_loss", "valid_accuracy", "lr"]
    pd.testing.assert_frame_equal(
        one.history[columns], two.history[columns], rtol=1e-3, check_dtype=False
    )
    np.testing.assert_allclose(one.oof.probs, two.oof.probs, atol=2e-3)
    np.testing.assert_allclose(one.test.probs, two.test.probs, atol=2e-3)


def test_f51_every_picture_is_predicted_once(pair):
    one, two, _ = pair
    assert list(one.oof.image_ids) == list(two.oof.image_ids)
    assert list(one.test.image_ids) == list(two.test.image_ids)


def test_the_epochs_arrive_while_the_processes_work(pair):
    assert [row["epoch"] for row in pair[2]] == [1, 2]


def test_a_task_comes_back_from_its_file(task):
    again, fold = launch.read_task(launch.write_task(task, 1))
    assert fold == 1
    for field in dataclasses.fields(task):
        ours, theirs = getattr(task, field.name), getattr(again, field.name)
        if isinstance(ours, pd.DataFrame):
            pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)
        elif isinstance(ours, cache.PixelCache):
            assert np.array_equal(ours.pixels, theirs.pixels)
        else:
            assert list(ours) == theirs if field.name == "tta" else ours == theirs


def test_processes_that_fail_say_why(tmp_path):
    words = "import sys; sys.exit('[rank1]: FloatingPointError: lower `lr`')"
    log = tmp_path / launch.LOG
    with (
        pytest.raises(RuntimeError, match="code 1: FloatingPointError: lower `lr`"),
        launch._started([sys.executable, "-c", words], log, 2) as child,
    ):
        launch._follow(child, tmp_path, print)


def test_a_process_that_is_done_leaves_before_python_ends():
    code = (
        "import atexit, os; atexit.register(lambda: os._exit(134));"
        "from sketchlib.training import processes; print('done'); processes.leave()"
    )
    ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stdout) == (0, b"done\n")


def test_processes_end_with_the_one_that_started_them(tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        pytest.raises(KeyboardInterrupt),
        launch._started(command, tmp_path / "log", 2) as child,
    ):
        raise KeyboardInterrupt
    assert child.wait(5) != 0


def test_a_batch_too_small_to_share_is_refused(task):
    few = dataclasses.replace(task, recipe=make(batch_size=2))
    with pytest.raises(ValueError, match="lower `processes`"):
        launch.train_fold(few, 0, count=2)
