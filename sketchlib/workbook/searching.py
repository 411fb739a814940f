"""The files a search is made of: its baseline and its space, read and checked.

Names and values are held against the parameter cell of 03_train before anything runs,
and neither Optuna nor torch is imported for it.
"""

from collections.abc import Mapping
from typing import Any

from sketchlib import workspace
from sketchlib.training import spaces
from sketchlib.workbook import parameters

TRAIN = "03_train"
_SHARED = ("audit_run", "columns", "data_dir", "runs_dir", "seed")


def read_base(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of 03_train as the baseline of a search has it.

    Args:
        asked: parameters of 06_tune; `train_file` may be empty.
    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a name or value in it is wrong.
    """
    schema = parameters.read_parameters(parameters.find_notebook(TRAIN))
    file = workspace.resolve_path(asked["train_file"])
    given = parameters.read_overrides(file) if asked["train_file"] else {}
    values: dict[str, Any] = {name: entry.default for name, entry in schema.items()}
    values |= parameters.check_overrides(schema, given, asked["train_file"])
    return values | {name: asked[name] for name in _SHARED} | {"budget_minutes": 0.0}


def read_space(file: str) -> spaces.Space:
    """The space in a YAML file, every name and value checked as 03_train would."""
    schema = parameters.read_parameters(parameters.find_notebook(TRAIN))
    known = [*schema, *spaces.OWN]

    def check(name: str, value: Any) -> spaces.Value:
        parameters.check_known(name, known, file)
        return parameters.coerce(schema[name], value, file)

    lines = parameters.read_overrides(workspace.resolve_path(file))
    return spaces.make_space(lines, check, file)
