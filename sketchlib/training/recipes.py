"""Recipes: short YAML lists of steps, read strictly.

The library's own stand in recipes.yaml beside this file, a user's in
`params/recipes/NAME.yaml`; a misspelt step or argument is an error that names the
nearest right one, since albumentations 2.0.8 only warns and uses its defaults.
`A.Name` takes any transform of albumentations. Limits: a recipe sees one picture at
a time; mixing several is `mixing`.
"""

import difflib
import functools
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sketchlib import workspace
from sketchlib.training import steps

_OWN = Path(__file__).with_suffix(".yaml")
_WORDS = ("one_of", "from_epoch")
WINNER = "winner"


@dataclass(frozen=True)
class Step:
    """One line of a recipe, checked.

    Attributes:
        name: a name of `steps.KINDS`, `one_of`, or `A.Name`.
        chance: of being applied, 0-1; within one_of its weight.
        args: every argument, the recipe's or the usual one; sorted by name.
        choices: the steps of one_of.
        from_epoch: first epoch, from 0, in which it counts.
    """

    name: str
    chance: float
    args: tuple[tuple[str, Any], ...] = ()
    choices: tuple["Step", ...] = ()
    from_epoch: int = 0


def names() -> list[str]:
    """Recipes there are: the library's own, then those in `params/recipes`."""
    own = list(_read_own())
    return own + sorted(set(_user_files()) - set(own))


@functools.cache
def _read_own() -> dict[str, list[Any]]:
    return yaml.safe_load(_OWN.read_text(encoding="utf-8"))


def _user_files() -> dict[str, Path]:
    folder = workspace.repo_root() / "params" / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def check_recipe(name: str) -> None:
    """Raise ValueError unless `name` is a recipe, and one without mistakes."""
    read_recipe(name)


def read_recipe(name: str) -> tuple[Step, ...]:
    """The steps of a recipe.

    Args:
        name: a name of `names()`, or a path ending in .yaml.
    Raises:
        ValueError: unknown name, step or argument, with the nearest one.
    """
    if name in _read_own():
        return parse_steps(_read_own()[name], f"recipe {name!r}")
    path = workspace.resolve_path(name) if name.endswith(".yaml") else None
    path = path or _user_files().get(name)
    if path is None or not path.is_file():
        raise ValueError(
            f"`augment` must be one of {', '.join(names())}, or a file params/recipes/"
            f"NAME.yaml, but {name!r} came{suggest(name, names())}"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} should be YAML, but cannot be read: {reason}"
        ) from error
    return parse_steps(content, str(path))


def parse_steps(lines: Any, where: str) -> tuple[Step, ...]:
    """A YAML list as steps.

    Args:
        lines: `[flip, {rotate: {degrees: 10}}, ...]`; see recipes.yaml.
        where: the file or recipe, for the message.
    """
    if not isinstance(lines, list):
        raise ValueError(
            f"{where} should be a list of steps, one `- name` a line, but it holds "
            f"{type(lines).__name__}"
        )
    made, epoch = [], 0
    for line in lines:
        name, given = _split_line(line, where)
        if name == "from_epoch":
            epoch = _as_epoch(given, epoch, where)
            continue
        made.append(_parse_step(name, given, epoch, where))
    return tuple(made)


def _split_line(line: Any, where: str) -> tuple[str, Any]:
    if isinstance(line, str):
        return line, {}
    if isinstance(line, dict) and len(line) == 1:
        return next(iter(line.items()))
    raise ValueError(
        f"a step in {where} should be `- name` or `- name: {{argument: value}}`, but "
        f"{line!r} came"
    )


def _as_epoch(given: Any, before: int, where: str) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < before:
        raise ValueError(
            f"`from_epoch` in {where} should be a whole number, {before} or more, but "
            f"{given!r} came"
        )
    return given


def _parse_step(name: Any, given: Any, epoch: int, where: str) -> Step:
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise ValueError(
            f"the arguments of `{name}` in {where} should be `{{name: value}}`, but "
            f"{given!r} came"
        )
    if name == "one_of":
        return _parse_choice(given, epoch, where)
    if isinstance(name, str) and name.startswith("A."):
        return _parse_foreign(name, given, epoch, where)
    if name not in steps.KINDS:
        known = [*steps.KINDS, *_WORDS]
        raise ValueError(
            f"a step in {where} must be one of {', '.join(known)}, or A.Name of "
            f"albumentations, but {name!r} came{suggest(name, known)}"
        )
    kind = steps.KINDS[name]
    _check_names(given, [*kind.dials, "p"], f"`{name}` in {where}")
    chance = _as_number(given.get("p", kind.chance), (0, 99), f"`{name}.p` in {where}")
    args = {key: dial.mid for key, dial in kind.dials.items()} | given
    args.pop("p", None)
    checked = {
        key: _as_number(
            value,
            (kind.dials[key].least, kind.dials[key].most),
            f"`{name}.{key}` in {where}",
        )
        for key, value in args.items()
    }
    return Step(name, chance, tuple(sorted(checked.items())), (), epoch)


def _parse_choice(given: dict[str, Any], epoch: int, where: str) -> Step:
    _check_names(given, ["p", "steps"], f"`one_of` in {where}")
    choices = parse_steps(given.get("steps", []), f"`one_of` in {where}")
    if not choices or sum(step.chance for step in choices) <= 0:
        raise ValueError(
            f"`one_of` in {where} should name `steps` with a `p` over 0, but it has "
            f"{len(choices)} steps to choose from"
        )
    chance = _as_number(given.get("p", 1.0), (0, 1), f"`one_of.p` in {where}")
    return Step("one_of", chance, (), choices, epoch)


def _parse_foreign(name: str, given: dict[str, Any], epoch: int, where: str) -> Step:
    """A transform of albumentations, its arguments held against its signature."""
    import albumentations

    known = [
        word
        for word, found in vars(albumentations).items()
        if inspect.isclass(found) and issubclass(found, albumentations.BasicTransform)
    ]
    if name[2:] not in known:
        near = difflib.get_close_matches(name[2:], known, 1)
        hint = f"; did you mean 'A.{near[0]}'?" if near else ""
        raise ValueError(
            f"{where} asks albumentations for {name!r}, unknown there{hint}"
        )
    wanted = list(inspect.signature(getattr(albumentations, name[2:])).parameters)
    _check_names(given, [*wanted, "p"], f"`{name}` in {where}")
    chance = _as_number(given.get("p", 0.5), (0, 99), f"`{name}.p` in {where}")
    args = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in given.items()
        if key != "p"
    }
    if "fill" in wanted:
        args.setdefault("fill", 255)
    step = Step(name, chance, tuple(sorted(args.items())), (), epoch)
    try:
        make_foreign(step)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"`{name}` in {where} has an argument it cannot use: {reason}"
        ) from error
    return step


def make_foreign(step: Step) -> Any:
    """The albumentations transform of an `A.Name` step, always applied."""
    import albumentations

    return getattr(albumentations, step.name[2:])(**dict(step.args), p=1.0)


def _check_names(given: dict[str, Any], known: list[str], what: str) -> None:
    for name in given:
        if name not in known:
            raise ValueError(
                f"an argument of {what} must be one of {', '.join(known)}, but "
                f"{name!r} came{suggest(name, known)}"
            )


def _as_number(value: Any, limits: tuple[float, float], what: str) -> float:
    low, high = limits
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise ValueError(
            f"{what} should be a number from {low:g} to {high:g}, but {value!r} came"
        )
    return value


def suggest(name: Any, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` when a known name is near, else nothing."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def describe(name: str) -> list[str]:
    """The recipe in words, a line a step, every argument said."""
    return [_describe(step) for step in read_recipe(name)]


def _describe(step: Step) -> str:
    start = f"from epoch {step.from_epoch}: " if step.from_epoch else ""
    if step.choices:
        parts = " | ".join(_describe(choice) for choice in step.choices)
        return f"{start}one of ({parts}) p={step.chance:g}"
    args = "".join(f" {key}={value}" for key, value in step.args)
    return f"{start}{step.name}{args} p={step.chance:g}"


def is_winner(name: str) -> bool:
    """Whether `augment` means what won a race."""
    return name == WINNER or name.startswith(f"{WINNER}:")


def find_winner(name: str, runs_dir: Path) -> str:
    """The recipe that `augment` means.

    Args:
        name: a recipe, which comes back as it is; `winner`, the recipe that won the
            race of the run called augmentation; or `winner:RUN`.
        runs_dir: where runs are.
    Raises:
        FileNotFoundError: that race has not been run.
        ValueError: what won is no recipe any more.
    """
    if not is_winner(name):
        return name
    run = name.partition(":")[2] or "augmentation"
    path = runs_dir / run / "winner.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"`augment: {name}` reads {path}, which is not there; run 02_augmentation "
            "with `seeds` over 0 first, or name a recipe"
        )
    found = str(yaml.safe_load(path.read_text(encoding="utf-8"))["augment"])
    check_recipe(found)
    return found
