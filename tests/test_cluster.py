"""Plans as Ray tasks, on Ray's own test cluster: two nodes on this machine."""

import os
import threading
import time

import pytest
from toys import PARAMETERS, write_notebook

from sketchlib import workspace
from sketchlib.workbook import cli, cluster

PLAN = """\
title: A grid on two nodes
parameters: {data_dir: data}
steps:
  - name: audit
    notebook: 01_eda
  - name: trial
    notebook: 03_train
    needs: [audit]
    grid: {recipe: [pen, none], epochs: [1, 2]}
  - name: blend
    notebook: 05_ensemble
    needs: [trial]
"""
COUNT = """\
import os, time
with (run.dir / "attempts.txt").open("a") as told:
    told.write(os.environ.get("OMP_NUM_THREADS", "") + "\\n")
time.sleep(4)"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SKETCHBOOK_ROOT", str(tmp_path))
    library = os.path.dirname(os.path.dirname(workspace.__file__))
    monkeypatch.setenv("PYTHONPATH", library)
    monkeypatch.chdir(tmp_path)
    for name in ("01_eda", "03_train", "05_ensemble"):
        cells = [("run", COUNT)] if name == "03_train" else []
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        write_notebook(path, cells, parameters=PARAMETERS)
    (tmp_path / "data").mkdir()
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path


def test_without_ray_the_remedy_is_named(root, capsys, monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(cluster.importlib, "import_module", refuse)
    assert cli.main(["workbook", "plan.yaml", "--ray", "local"]) == 2
    assert "sketchlib[ray]" in capsys.readouterr().err


def start_head(Cluster):
    """A head node; on a busy machine Ray's own half minute may not be enough."""
    for _ in range(3):
        try:
            return Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        except Exception as error:
            if "timed out" not in str(error):
                raise
    pytest.skip("Ray does not start here: the machine is too busy")


def read_states(root):
    records = sorted((root / "runs").glob("*/run.json"))
    return {path.parent.name: workspace.read_json(path)["state"] for path in records}


def kill_busy_node(nodes, root, killed):
    """Kill the second node as soon as a trial trains on each of the two."""
    patience = time.monotonic() + 120
    while time.monotonic() < patience:
        begun = [p.parent.name for p in (root / "runs").glob("trial*/attempts.txt")]
        states = read_states(root)
        if sum(states.get(name) == "running" for name in begun) >= 2:
            nodes["all"].remove_node(nodes["second"], allow_graceful=False)
            killed.append(read_states(root))
            return
        time.sleep(0.1)


@pytest.mark.slow
def test_a_grid_ends_complete_though_a_node_is_killed(root, capfd):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    both = start_head(Cluster)
    nodes = {"all": both, "second": both.add_node(num_cpus=1)}
    killed = []
    murder = threading.Thread(target=kill_busy_node, args=(nodes, root, killed))
    murder.start()
    try:
        asked = ["workbook", "plan.yaml", "--ray", both.address]
        code = cli.main(asked)
    finally:
        murder.join()
        both.shutdown()
    out = capfd.readouterr().out
    assert "running" in killed[0].values()
    assert "its node was lost" in out
    assert code == 0
    assert len(read_states(root)) == 6
    assert set(read_states(root).values()) == {"done"}
    attempts = [p.read_text() for p in (root / "runs").glob("trial*/attempts.txt")]
    assert len(attempts) == 4
    assert sum(text.count("\n") for text in attempts) >= 5  # one was made again
    assert set("".join(attempts).split()) == {"1"}


@pytest.mark.slow
def test_a_step_that_fits_no_node_is_refused_and_not_waited_for(root, capfd):
    pytest.importorskip("ray")
    (root / "plan.yaml").write_text(PLAN.replace("needs: [trial]", "gpus: 3"))
    assert cli.main(["workbook", "plan.yaml", "--ray", "local"]) == 2
    told = capfd.readouterr().err
    assert "step `blend` needs 1 CPUs and 3 GPUs" in told
