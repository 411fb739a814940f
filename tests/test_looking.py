"""A run that is opened is whole, or says what is missing."""

import dataclasses

import pytest
from recipes import TINY

from sketchlib.analysis import looking
from sketchlib.data import cache, manifest

GEOMETRY = dataclasses.asdict(cache.Geometry(32, "ink", "grey", "white"))


def open_run(world, folder, record):
    table = manifest.read_manifest(world)
    return looking.open_run(record, folder, table, world, folder / "cache")


def test_a_run_opens_with_its_network(world, tmp_path):
    record = {"network": dataclasses.asdict(TINY), "geometry": GEOMETRY}
    assert open_run(world, tmp_path, record).network == TINY


def test_a_record_of_an_older_version_says_what_it_lacks(world, tmp_path):
    old = dataclasses.asdict(TINY)
    del old["lora_rank"], old["mapping"]
    record = {"network": old, "geometry": GEOMETRY, "commit": "abc1234"}
    with pytest.raises(ValueError) as told:
        open_run(world, tmp_path, record)
    assert "should name mapping, lora_rank, but was written by an older version" in str(
        told.value
    )
    assert "abc1234" in str(told.value)


def test_a_run_that_is_not_finished_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="names no network .state 'failed'"):
        open_run(world, tmp_path, {"state": "failed"})
