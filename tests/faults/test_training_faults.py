"""Faults of training that need processes of their own, and what all of them share."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def kill():
    spec = importlib.util.spec_from_file_location("kill", ROOT / "benchmarks/kill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_f41_sigkill_at_random_moments_loses_nothing(kill, tmp_path):
    kill.write_drawings(tmp_path)
    assert kill.start(tmp_path, "whole").wait() == 0
    hits, _, _ = kill.kill_often(tmp_path, 2, seed=1)
    assert hits == 2
    assert kill.list_differences(tmp_path) == []
    assert not list((tmp_path / "killed").rglob("*.pt"))


@pytest.mark.slow
def test_a_difference_would_be_seen(kill, tmp_path):
    kill.write_drawings(tmp_path)
    for run in ("whole", "killed"):
        kill.train(tmp_path, run)
    path = tmp_path / "killed" / "fold0" / "history.csv"
    history = pd.read_csv(path)
    history.loc[history.index[-1], "train_loss"] *= 1 + 1e-12
    history.to_csv(path, index=False)
    assert kill.list_differences(tmp_path) == ["history.csv"]
