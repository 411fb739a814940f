"""A pass over files by threads or by processes: the same work, the same errors."""

import os
import time

import numpy as np
import pandas as pd
import pytest

from sketchlib.data import audit, cache, manifest, mapped, passes

GEOMETRY = cache.Geometry(48, "ink", "grey", "white")
KIND = np.dtype([("row", "i8"), ("by", "i8")])


@pytest.fixture
def forked(monkeypatch):
    monkeypatch.setattr(passes, "_MANY", 1)


def way(**changes):
    return passes.Pass(lambda row: f"picture {row}", workers=3, shared=True, **changes)


def test_processes_see_every_row_once_and_share_what_they_write(forked):
    seen = mapped.shared_zeros(200, KIND)

    def work(row):
        seen[row] = (seen["row"][row] + row, os.getpid())

    counts = list(passes.run_rows(passes.one_by_one(work), list(range(200)), way()))
    assert sum(counts) == 200
    assert seen["row"].tolist() == list(range(200))
    assert os.getpid() not in set(seen["by"].tolist())


def test_few_rows_or_work_that_is_not_shared_stay_in_this_process():
    for shared, count in ((True, 20), (False, 2000)):
        seen = []
        how = passes.Pass(str, workers=2, shared=shared)
        work = passes.one_by_one(seen.append)
        list(passes.run_rows(work, list(range(count)), how))
        assert sorted(seen) == list(range(count))


def test_an_error_in_a_process_is_raised_here(forked):
    def work(row):
        if row == 77:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        list(passes.run_rows(passes.one_by_one(work), list(range(100)), way()))


def test_a_read_that_hangs_in_a_process_is_named_and_ended(forked):
    def work(row):
        if row == 99:
            time.sleep(60)

    started = time.monotonic()
    with pytest.raises(passes.StalledError, match="picture 99"):
        list(
            passes.run_rows(
                passes.one_by_one(work), list(range(100)), way(patience=1.0)
            )
        )
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("many", [1, 10**6])
def test_a_slow_chunk_is_waited_for_as_long_as_it_moves(monkeypatch, many):
    monkeypatch.setattr(passes, "_MANY", many)
    rows = list(range(24))  # chunks of two
    work = passes.one_by_one(lambda row: time.sleep(0.4))
    assert sum(passes.run_rows(work, rows, way(patience=0.5))) == 24


def test_a_killed_process_is_told(forked):
    def work(row):
        os.kill(os.getpid(), 9)

    with pytest.raises(RuntimeError, match="ended before its work was done"):
        list(passes.run_rows(passes.one_by_one(work), list(range(100)), way()))


def test_processes_find_and_keep_what_threads_do(world, tmp_path, monkeypatch):
    table = manifest.read_manifest(world)
    made = {}
    for many in (1, 10**6):
        monkeypatch.setattr(passes, "_MANY", many)
        store = tmp_path / str(many)
        seen = audit.inspect(
            table, world, cache_dir=store, geometry=GEOMETRY, workers=2
        )
        pixels = cache.open_pixels(table, world, GEOMETRY, store)
        made[many] = (seen, np.array(pixels.pixels), pixels.readable)
    (one, pixels, readable), (two, others, same) = made.values()
    pd.testing.assert_frame_equal(one.findings, two.findings)
    assert np.array_equal(one.thumbs, two.thumbs)
    assert np.array_equal(pixels, others)
    assert np.array_equal(readable, same)
