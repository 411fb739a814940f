"""The largest batch that fits is found where it is known, and the recipe follows."""

import dataclasses
import math

import pytest
import torch
from recipes import make
from test_folds import task  # noqa: F401

from sketchlib import workspace
from sketchlib.training import capacity, folds, loop


def refuse_over(limit, tried=None):
    def attempt(size):
        if tried is not None:
            tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    return attempt


@pytest.mark.parametrize(
    ("limit", "most", "found"),
    [(48, 512, 48), (50, 512, 48), (300, 200, 200), (2, 512, 2), (7, 512, 6)],
)
def test_a_simulated_gpu_is_filled_and_not_more(limit, most, found):
    tried = []
    assert capacity.find_batch(refuse_over(limit, tried), most, "cuda") == found
    assert tried[-1] == found
    assert all(size > limit for size in tried[:-1])
    assert len(tried) <= 4 * math.log2(most)


def test_where_nothing_fits_the_remedy_is_told():
    with pytest.raises(MemoryError, match="not even two pictures.*`side_px`"):
        capacity.find_batch(refuse_over(1), 64, "cuda")


def test_another_error_is_not_taken_for_a_full_memory():
    def attempt(size):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        capacity.find_batch(attempt, 64, "cuda")


def test_on_a_processor_the_free_memory_decides(task, monkeypatch):  # noqa: F811
    train, _, _ = folds.make_examples(task, 0)
    attempt = capacity.make_attempt(task, train)
    small, large = (capacity.weigh_update(attempt, size) for size in (4, 8))
    each, fixed = (large - small) / 4, 2 * small - large
    assert capacity.weigh_update(attempt, 16) == pytest.approx(fixed + 16 * each)
    for wanted in (6, 20):
        room = (fixed + (wanted + 0.5) * each) * capacity._OVERHEAD / capacity._SHARE
        monkeypatch.setattr(workspace, "free_memory", lambda room=room: int(room))
        assert capacity.find_batch(attempt, 512, "cpu") == wanted


@pytest.fixture
def on_gpu(task, monkeypatch):  # noqa: F811
    """A task whose device refuses more than six pictures at once."""

    def try_update(model, train, recipe, way):
        assert len(train.rows) == recipe.batch_size
        refuse_over(6)(recipe.batch_size)

    monkeypatch.setattr(loop, "try_update", try_update)
    monkeypatch.setattr(capacity, "LEAST_UPDATES", 2)
    return dataclasses.replace(task, way=dataclasses.replace(task.way, device="cuda"))


def ask(task, **changes):  # noqa: F811
    return dataclasses.replace(task, recipe=make(epochs=1, **changes))


def test_accumulation_keeps_the_batch_and_the_rate(on_gpu):
    asked = ask(on_gpu, batch_size=20, accumulate=0)
    ready, found = capacity.settle(asked, "sqrt", 32, 1)
    assert (ready.recipe.batch_size, ready.recipe.accumulate) == (20, 4)
    assert ready.recipe.lr == asked.recipe.lr
    assert "20 pictures per update, as asked, in 4 parts" in found.text
    two, _ = capacity.settle(asked, "sqrt", 32, 2)
    assert (two.recipe.batch_size, two.recipe.accumulate) == (20, 2)


@pytest.mark.parametrize(
    ("rule", "factor"), [("sqrt", 0.5), ("linear", 0.25), ("none", 1.0)]
)
def test_a_batch_that_is_found_brings_its_rate_along(on_gpu, rule, factor):
    asked = ask(on_gpu, batch_size=0)
    ready, found = capacity.settle(asked, rule, 24, 1)
    assert (ready.recipe.batch_size, ready.recipe.accumulate) == (6, 1)
    assert ready.recipe.lr == pytest.approx(asked.recipe.lr * factor)
    assert found.text.startswith("6 pictures per update, 6 at once, the most cuda")
    two, _ = capacity.settle(asked, rule, 24, 2)
    assert two.recipe.batch_size == 12


def test_an_epoch_keeps_its_updates(on_gpu, monkeypatch):
    monkeypatch.setattr(capacity, "LEAST_UPDATES", 5)
    ready, found = capacity.settle(ask(on_gpu, batch_size=0), "sqrt", 2, 1)
    rows = len(folds.make_examples(on_gpu, 0)[0].rows)
    assert ready.recipe.batch_size == rows // 5 // 2 * 2 == 4
    assert "more would fit" in found.text
    few, _ = capacity.settle(ask(on_gpu, batch_size=0), "sqrt", 6, 1)
    assert few.recipe.batch_size == 6  # never under the batch the rate is for


def test_what_was_found_is_kept_for_a_run_that_goes_on(on_gpu, monkeypatch):
    asked = ask(on_gpu, batch_size=0)
    first, told = capacity.settle(asked, "sqrt", 32, 1)
    monkeypatch.setattr(loop, "try_update", None)
    assert capacity.settle(asked, "sqrt", 32, 1) == (first, told)
    again = dataclasses.replace(asked, fresh=True)  # as `sketch reproduce` asks
    assert capacity.settle(again, "sqrt", 32, 1)[1] == told
    with pytest.raises(TypeError):
        capacity.settle(asked, "linear", 32, 1)


def test_what_is_asked_outright_is_not_measured(on_gpu, monkeypatch):
    monkeypatch.setattr(loop, "try_update", None)
    ready, found = capacity.settle(ask(on_gpu, batch_size=8), "sqrt", 32, 1)
    assert ready.recipe.batch_size == 8
    assert found.text == "8 pictures per update, as asked"


def test_an_open_batch_never_trains(task, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="call `capacity.settle` first"):
        folds.train_fold(ask(task, batch_size=0), 0)


def test_a_real_update_is_tried_and_leaves_the_model_alone(task):  # noqa: F811
    settled = dataclasses.replace(task, recipe=make(epochs=1, batch_size=0, lr=0.01))
    ready, _ = capacity.settle(settled, "linear", 8, 1)
    assert (ready.recipe.batch_size, ready.recipe.lr) == (8, 0.01)
    result = folds.train_fold(ready, 0)
    same = dataclasses.replace(ready, run_dir=task.run_dir.with_name("outright"))
    again = folds.train_fold(same, 0)
    assert result.oof.logits.tobytes() == again.oof.logits.tobytes()
