"""Contradictions are found before a kernel starts, each with its way out."""

import importlib.util
import subprocess
import sys

import pytest

from sketchlib import workspace
from sketchlib.training import settings
from sketchlib.workbook import checks, cli, parameters, searching


@pytest.fixture(scope="module")
def defaults():
    schema = parameters.read_parameters(parameters.find_notebook("03_train"))
    return {name: entry.default for name, entry in schema.items()}


MIX = {"cutmix_alpha": 1.0}
BANK = {"frozen": True, "bank_views": 2, "head": "random"}
CLASHES = [
    (MIX | {"mix_off_epochs": 12}, "no epoch is left"),
    (MIX | {"batch_size": 33}, "33, which is odd"),
    (MIX | {"batch_size": 34, "processes": 2}, "17, which is odd"),
    ({"curriculum": ["20:flip:0.5"]}, "epoch 20, but there are 12 `epochs`"),
    ({"target_accuracy": 0.5, "target_epochs": 13}, "lower `target_epochs`"),
    (BANK | {"find_lr": True}, "set `find_lr: false`"),
    (BANK | {"head": "probe"}, "set `head: random`"),
    (BANK | {"lora_rank": 4}, "a bank keeps as they are"),
    ({"bank_views": 2, "head": "random"}, "set `frozen: true`"),
    ({"processes": 8, "batch_size": 8}, "lower `processes`"),
    ({"processes": 2, "retry_nan": True}, "`retry_nan` works in one process"),
    ({"frozen": True, "layer_decay": 0.7}, "slows the layers"),
    ({"unfreeze_last": 1}, "`frozen: true`"),
    ({"loss": "soft_f1", "accumulate": 2}, "set `accumulate` to 1"),
    ({"sampler": "up", "class_weights": "inverse"}, "use one of the two"),
    ({"keep": "best_mean", "keep_epochs": 20}, "lower `keep_epochs`"),
    ({"weights": "none"}, "use `head` random"),
    ({"head_layers": "mlp"}, "use `head` random"),
    ({"mapping": "x.csv"}, "leave it empty"),
    ({"targets": "per_attribute"}, "list their columns in `attributes`"),
    ({"superclasses": "coarse.csv"}, "leave it empty"),
    ({"fold_jobs": 2, "budget_minutes": 5.0}, "set one of them off"),
    ({"fold_jobs": 2, "processes": 2}, "set one of them to 1"),
    (BANK | {"batch_size": 0}, "name a `batch_size`"),
    ({"batch_size": 1}, "`batch_size` should be 0 or over 1"),
    ({"loss": "soft_f1", "accumulate": 0}, "set `accumulate` to 1"),
    ({"augment": "affine_bokses"}, "did you mean 'affine_boxes'"),
    ({"model": "tf_eficientnet_lite0"}, "did you mean tf_efficientnet_lite0"),
    ({"model": "resnet18.a9_in1k"}, "did you mean resnet18.a"),
    ({"optimizer": "adamv"}, "should be one timm knows"),
]
NO_WEIGHTS = {"weights": "none", "head": "random"}
OF_THE_MODEL = [
    (NO_WEIGHTS, "set `norm: learn`, or `head: probe`"),
    ({"head": "random", "norm": "still"}, "set `norm: learn`, or `head: probe`"),
    ({"frozen": True, "unfreeze_last": 99}, "`unfreeze_last` must be 0 to 7"),
    (
        {"lora_rank": 4, "norm": "learn", **NO_WEIGHTS},
        "has none; set `lora_rank: 0`",
    ),
    (
        {"model": "test_vit", "side_px": 100, **NO_WEIGHTS},
        "`side_px` 100 does not suit",
    ),
    (
        {"model": "test_vit", "side_px": 160, "progressive": ["1:96"], **NO_WEIGHTS},
        "takes one size only",
    ),
    ({"progressive": ["1:256"]}, "raise `side_px`"),
]


def test_the_notebooks_own_defaults_go_together(defaults):
    settings.check_settings(defaults)
    checks.check_values(defaults)


@pytest.mark.parametrize(("changes", "told"), [*CLASHES, *OF_THE_MODEL], ids=str)
def test_a_contradiction_is_told_with_its_way_out(defaults, changes, told):
    if "lora_rank" in changes:
        pytest.importorskip("peft")
    with pytest.raises(ValueError) as refused:
        settings.check_settings(defaults | changes)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        MIX,
        BANK,
        {"augment": "winner"},
        {"frozen": True, "unfreeze_last": 2},
        {"progressive": ["1:96", "5:128"]},
        {"norm": "learn", **NO_WEIGHTS},
        {"stats": "dataset"},
        {"head": "transplant"},
        {"model": "test_vit", "side_px": 160, **NO_WEIGHTS},
        {"model": "test_vit", "side_px": 160, "lora_rank": 4, **NO_WEIGHTS},
    ],
    ids=str,
)
def test_what_goes_together_passes(defaults, changes):
    if "lora_rank" in changes:
        pytest.importorskip("peft")
    settings.check_settings(defaults | changes)


def test_a_search_is_checked_with_its_baseline_and_its_space(tmp_path):
    schema = parameters.read_parameters(parameters.find_notebook("06_tune"))
    asked = {name: entry.default for name, entry in schema.items()}
    checks.check_values(asked)
    with pytest.raises(ValueError, match="set `trials`, `minutes` or both"):
        checks.check_values(asked | {"trials": 0})
    file = tmp_path / "odd.yaml"
    file.write_text("cutmix_alpha: 1.0\nbatch_size: 33\n")
    with pytest.raises(ValueError, match="which is odd"):
        checks.check_values(asked | {"train_file": str(file)})
    space = tmp_path / "space.yaml"
    space.write_text("lr: log 0.001 0.1\nfrozen: true\nlayer_decay: 0.5\n")
    with pytest.raises(ValueError, match="slows the layers"):
        checks.check_values(asked | {"space_file": str(space)})
    assert searching.read_base(asked | {"seed": 5})["seed"] == 5


def test_the_command_refuses_in_one_sentence_and_leaves_no_folder(tmp_path, capsys):
    asked = ["run", "03_train", "-p", "cutmix_alpha", "1", "-p", "batch_size", "33"]
    assert cli.main([*asked, "--runs", str(tmp_path / "runs")]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("sketch: mixing pairs the pictures")
    assert "\n" not in told
    assert not (tmp_path / "runs").exists()


def test_a_plan_is_refused_before_its_first_step(tmp_path, world, capsys):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"parameters: {{data_dir: {world}}}\nsteps:\n"
        "  - {name: audit, notebook: 01_eda}\n"
        "  - {name: one, notebook: 03_train, parameters: {unfreeze_last: 2}}\n"
    )
    assert cli.main(["workbook", str(plan), "--runs", str(tmp_path / "runs")]) == 2
    assert "`frozen: true`" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_usual_case_is_checked_without_torch():
    code = (
        "import sys\nfrom sketchlib.workbook import jobs, parameters\n"
        "jobs.make_job(parameters.find_notebook('03_train'), {'run_name': 'x'})\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"torch", "timm", "optuna"} & set(done.stdout.split())


def test_every_preset_and_parameter_file_goes_together(defaults):
    folder = workspace.repo_root() / "params" / "03_train"
    files = sorted(folder.rglob("*.yaml"))
    assert len(files) > 8
    for file in files:
        given = parameters.read_overrides(file)
        weightless = NO_WEIGHTS | {"norm": "learn"}  # no hub in the tests
        known = "lite" in str(given.get("model", "lite"))
        asked = defaults | given | ({} if known else weightless)
        if asked["lora_rank"] and importlib.util.find_spec("peft") is None:
            with pytest.raises(ValueError, match="pip install"):
                settings.check_settings(asked)
            continue
        settings.check_settings(asked)
