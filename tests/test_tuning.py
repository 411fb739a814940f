import datetime
import os
import socket
import time

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState

from sketchlib import workspace
from sketchlib.data import manifest, splits
from sketchlib.training import predictions, spaces, trials, tuning, workers
from sketchlib.workbook import parameters, searches


@pytest.fixture
def search(world, tmp_path):
    table = manifest.read_manifest(world)
    folds = tmp_path / "audit" / "folds.csv"
    folds.parent.mkdir()
    splits.make_folds(table, None, 2, seed=0).to_csv(folds, index=False)
    schema = parameters.read_parameters(parameters.find_notebook("03_train"))
    base = {name: entry.default for name, entry in schema.items()}
    given = parameters.read_overrides(
        workspace.repo_root() / "params/03_train/smoke.yaml"
    )
    rates = [spaces.Dimension("lr", "log", 0.001, 0.1, ())]
    return tuning.Search(
        run_dir=tmp_path / "tune",
        data_dir=world,
        columns=[],
        folds_file=folds,
        storage="",
        base=base | given | {"tta": []},
        space=spaces.as_plain(spaces.Space(rates, {})),
        folds=1,
        objective="accuracy",
        sampler="random",
        pruner="asha",
        reduction=2,
        trials=4,
        minutes=0.0,
        retries=1,
        jobs=1,
        seed=0,
    )


def change(search, **changes):
    return tuning.Search(**(vars(search) | changes))


class Instant:
    """Trials without training: the score falls with the rate."""

    def __init__(self, monkeypatch, on_epoch=None):
        monkeypatch.setattr(trials, "make_task", self.make_task)
        monkeypatch.setattr(trials, "train", self.train)
        monkeypatch.setattr(
            trials,
            "score",
            lambda oof, table: {
                "accuracy": oof,
                "log_loss": 1 - oof,
            },
        )
        self.on_epoch = on_epoch
        self.trained = []

    def make_task(self, world, values, run_dir, *, test):
        return values

    def train(self, values, count, follow):
        done = len(self._read(values))
        for epoch in range(done + 1, values["epochs"] + 1):
            self.trained.append((values["run_name"], epoch))
            score = (1 - values["lr"]) * (0.5 + 0.1 * epoch)
            row = {"epoch": epoch, "valid_accuracy": score, "valid_loss": 1 - score}
            if self.on_epoch:
                self.on_epoch(values["run_name"], epoch)
            follow(0, row)
        return score

    def _read(self, values):
        path = workspace.Path(values["runs_dir"]) / values["run_name"]
        path = path / "metrics.jsonl"
        return workspace.read_jsonl(path) if path.exists() else []


@pytest.fixture
def quick(search):
    runs = str(search.run_dir.parent)
    return change(search, base=search.base | {"runs_dir": runs, "epochs": 4}, trials=8)


def test_a_search_trains_prunes_and_leaves_ordinary_runs(search):
    study = tuning.work(search)
    found = tuning.read_trials(study, search)
    assert len(found) == 4
    assert found["baseline"].tolist() == [True, False, False, False]
    done = found[found["state"] == "complete"]
    for run in done["run"]:
        folder = search.run_dir.parent / run
        record = workspace.read_json(folder / "run.json")
        assert record["state"] == "done"
        oof = predictions.read_predictions(folder / "oof.npz")
        assert set(oof.fold) == {0}
        assert len(workspace.read_jsonl(folder / "metrics.jsonl")) == 2
        assert not list(folder.rglob("*.safetensors"))
    assert tuning.read_values(search, done["run"].iloc[0])["model"] == "test_resnet"


def test_pruned_epochs_are_counted_as_saved(quick, monkeypatch):
    quick = change(quick, trials=16)
    world = Instant(monkeypatch)
    study = tuning.work(quick)
    found = tuning.read_trials(study, quick)
    assert set(found["state"]) == {"complete", "pruned"}
    assert tuning.saved_epochs(found) == pytest.approx(1 - len(world.trained) / 64)
    assert tuning.saved_epochs(found) > 0.3
    best = tuning.rank_trials(found, quick)
    assert best["lr"].iloc[0] == best["lr"].min()
    shares, basis = tuning.weigh_parameters(study, quick)
    assert shares.index.tolist() == ["lr"] and "trials" in basis


def test_f58_a_killed_workers_trial_is_failed_and_goes_on_where_it_was(
    quick, monkeypatch
):
    def kill(run, epoch):
        if run.endswith("001") and epoch == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "_make_pruner", lambda _: optuna.pruners.NopPruner())
    Instant(monkeypatch, kill)
    with pytest.raises(KeyboardInterrupt):
        tuning.work(quick)
    study = tuning.open_study(quick)
    (running,) = study.get_trials(states=(TrialState.RUNNING,))
    study._storage.set_trial_user_attr(running._trial_id, "pid", 2**22 + 1)
    world = Instant(monkeypatch)
    found = tuning.read_trials(tuning.work(quick), quick)
    assert found["state"].value_counts().to_dict() == {"complete": 8, "failed": 1}
    again = found[found["run"] == found["run"][1]]
    assert again["lr"].nunique() == 1
    assert again["state"].tolist() == ["failed", "complete"]
    assert [epoch for run, epoch in world.trained if run == again["run"].iloc[0]] == [
        3,
        4,
    ]
    assert again["epochs"].iloc[1] == 4


def test_f58_a_journal_cut_mid_line_is_mended(quick, monkeypatch, capsys):
    Instant(monkeypatch)
    tuning.work(change(quick, trials=3))
    journal = quick.run_dir / "journal.log"
    with journal.open("ab") as out:
        out.write(b'{"op_code":5,"worker_id":"x","trial_')  # killed here
    found = tuning.read_trials(tuning.work(quick), quick)
    assert len(found) == 8
    assert "1 cut line(s)" in capsys.readouterr().out
    assert b'"trial_' in journal.with_suffix(".broken").read_bytes()


@pytest.mark.parametrize(
    "engine", ["local", pytest.param("ray", marks=pytest.mark.slow)]
)
def test_f58_two_workers_share_a_study_and_its_budget(search, engine):
    if engine == "ray":
        pytest.importorskip("ray")
    said = []
    study = workers.run(change(search, jobs=2), engine=engine, say=said.append)
    found = tuning.read_trials(study, search)
    live = found[found["state"].isin(["complete", "pruned"])]
    assert 4 <= len(live) <= 5  # both may ask for the last one
    assert len(said) == len(live)
    pids = {t.user_attrs["pid"] for t in study.get_trials()}
    assert len(pids) == 2 and os.getpid() not in pids
    for run in live.loc[live["state"] == "complete", "run"]:
        assert (search.run_dir.parent / run / "oof.npz").exists()


def test_a_live_trial_of_another_machine_is_left_alone_until_it_is_silent(search):
    study = tuning.open_study(search)
    trial = study.ask()
    trial.set_user_attr("host", "elsewhere")
    trial.set_user_attr("pid", 1)
    trial.set_user_attr("run", "tune-000")
    trial.set_user_attr("beat", time.time())
    assert tuning.fail_dead(study, search) == []
    trial.set_user_attr("beat", time.time() - tuning.STALE_SECONDS - 1)
    assert tuning.fail_dead(study, search) == [0]
    assert [t.state for t in study.get_trials()][-1] == TrialState.WAITING
    assert tuning.fail_dead(study, search) == []


def test_a_trial_that_keeps_dying_is_given_up(search):
    study = tuning.open_study(search)
    for number in range(2):
        trial = study.ask()
        for name, value in {"run": "tune-000", "pid": 2**22 + 1}.items():
            trial.set_user_attr(name, value)
        trial.set_user_attr("host", socket.gethostname())
        assert tuning.fail_dead(study, search) == [number]
    assert not study.get_trials(states=(TrialState.WAITING,))


def test_minutes_count_over_sessions(quick, monkeypatch):
    study = tuning.open_study(change(quick, trials=0, minutes=1.0))
    began = datetime.datetime.now() - datetime.timedelta(minutes=2)
    study.add_trial(
        optuna.trial.FrozenTrial(
            number=0, state=TrialState.COMPLETE, value=0.5, datetime_start=began,
            datetime_complete=datetime.datetime.now(), params={}, distributions={},
            user_attrs={}, system_attrs={}, intermediate_values={}, trial_id=0,
        )
    )  # fmt: skip
    Instant(monkeypatch)
    assert len(tuning.work(change(quick, trials=0, minutes=1.0)).get_trials()) == 2
    assert len(tuning.work(change(quick, trials=0, minutes=2.01)).get_trials()) > 1


def test_a_recipe_that_fails_fails_its_trial_and_three_in_a_row_the_search(
    quick, monkeypatch
):
    def fail(run, epoch):
        raise FloatingPointError("the loss is nan")

    Instant(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="three trials in a row.*the loss is nan"):
        tuning.work(quick)
    found = tuning.read_trials(tuning.open_study(quick), quick)
    assert found["state"].tolist() == ["failed"] * 3


def test_another_space_under_the_same_name_is_refused(search):
    tuning.open_study(search)
    with pytest.raises(ValueError, match="another `run_name`"):
        tuning.open_study(change(search, base=search.base | {"epochs": 3}))


def test_a_search_needs_an_end(search):
    with pytest.raises(ValueError, match="set `trials`, `minutes` or both"):
        change(search, trials=0)


def test_a_search_comes_back_from_its_file(search):
    path = tuning.write_search(search)
    assert tuning.read_search(path.parent) == search


def test_fresh_folds_are_those_the_search_did_not_use(search, rng):
    logits = rng.normal(size=(6, 3)).astype(np.float32)
    ids = np.array([f"p{n}" for n in range(6)])
    oof = predictions.Predictions(
        ids, np.array(["a", "b", "c"]), logits, np.array([0, 0, 1, 1, 2, 2])
    )
    parts = searches.split_folds(oof, search)
    assert list(parts["search"].image_ids) == ["p0", "p1"]
    assert list(parts["fresh"].image_ids) == ["p2", "p3", "p4", "p5"]
    table = pd.DataFrame({"image_id": ids, "label": [0, 1, 2, 0, 1, 2]})
    scored = searches.score_parts({"baseline": oof, "top 1": oof}, search, table)
    truth = table["label"].to_numpy() == logits.argmax(1)
    assert scored["search"].tolist() == [truth[:2].mean()] * 2
    assert scored["fresh"].tolist() == [truth[2:].mean()] * 2
