"""What a notebook's `check` cell would say of its parameters, said before the kernel.

Which rules hold is told by the parameters there are, not by the notebook's name, so
that a copy of 03_train is checked like the original. Nothing heavy is imported until
a rule needs it. Limits: rules that need the data are left to the notebook.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sketchlib import workspace

Values = Mapping[str, Any]


def check_values(values: Values) -> None:
    """Raise where the parameters of a notebook contradict each other.

    Raises:
        ValueError: two settings that do not go together, or an unknown name.
        FileNotFoundError: a file that a parameter names is not there.
    """
    if {"train_file", "space_file"} <= set(values):
        _check_search(values)
    elif _trains(values):
        _check_training(values)
    elif isinstance(values.get("recipes"), list):
        from sketchlib.training import recipes

        for name in values["recipes"]:
            recipes.check_recipe(str(name))


def _trains(values: Values) -> bool:
    """Whether these are the parameters of 03_train, or of a copy of it."""
    from sketchlib.training.network import Network
    from sketchlib.training.recipe import Recipe

    fields = (*dataclasses.fields(Recipe), *dataclasses.fields(Network))
    return {field.name for field in fields} <= set(values)


def _check_training(values: Values) -> None:
    from sketchlib.training import settings
    from sketchlib.workbook import trackers

    trackers.check_tracker(str(values["tracker"]))
    settings.check_settings(values)
    if values["pseudo_runs"]:
        from sketchlib.analysis import pseudo

        asked = workspace.pick(pseudo.Asked, dict(values))
        runs_dir = workspace.resolve_path(str(values["runs_dir"]))
        pseudo.check_apart(asked, str(values["run_name"]), runs_dir)


def _check_search(values: Values) -> None:
    from sketchlib.training import settings
    from sketchlib.workbook import searching

    if not values["trials"] and not values["minutes"]:
        raise ValueError("a search needs an end: set `trials`, `minutes` or both")
    space = searching.read_space(str(values["space_file"]))
    settings.check_settings(searching.read_base(values) | dict(space.shared))
