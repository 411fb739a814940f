"""Search spaces: what a study may vary, one parameter a line.

    lr: log 0.0003 0.003                   # a float, even in its logarithm
    drop_rate: float 0 0.4                 # a float
    epochs: int 2 8                        # a whole number, both ends included
    augment: any of none, affine_boxes     # one of these
    side_px: 96                            # the same in every trial

Names are those of 03_train, and every value passes its checks there. Two names are
the search's own: `trial` (`train` fine-tunes, `probe` fits a linear head to frozen
features) and `strength` of that head. Limits: lists cannot be varied.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

KINDS = ("train", "probe")
OWN: dict[str, Any] = {
    "trial": "train",
    "strength": 0.03,
}  # what holds where a space is silent
FIXED = ("data_dir", "runs_dir", "run_name", "columns", "audit_run", "budget_minutes")
PROBED = (
    "model",
    "weights",
    "side_px",
    "fit",
    "paper",
    "channels",
    "trial",
    "strength",
)
_FORMS = "`log LOW HIGH`, `float LOW HIGH`, `int LOW HIGH`, `any of A, B`, or a value"
_RANGE = re.compile(r"(log|float|int)\s+(\S+)\s+(\S+)")
Value = int | float | str | bool | list[Any]
Check = Callable[[str, Any], Value]


@dataclass(frozen=True)
class Dimension:
    """One parameter's values: `log`, `float` and `int` from low to high, or `any`."""

    name: str
    form: str
    low: float
    high: float
    choices: Sequence[Any]

    def holds(self, value: Any) -> bool:
        """Whether a trial may have this value."""
        if self.form == "any":
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Space:
    """What varies, and what all trials share beside the baseline's values."""

    dimensions: Sequence[Dimension]
    shared: Mapping[str, Value]

    @property
    def names(self) -> list[str]:
        return [dimension.name for dimension in self.dimensions]


def make_space(lines: Mapping[str, Any], check: Check, where: str) -> Space:
    """A space from `name: text` lines.

    Args:
        lines: of the YAML file.
        check: (name, value) → the value as 03_train means it; raises ValueError.
        where: the file, for the messages.
    Raises:
        ValueError: an unknown name, a form that is none, a value out of range, or
            nothing that varies.
    """
    dimensions, shared = [], {}
    for name, text in lines.items():
        if name in FIXED:
            raise ValueError(
                f"`{name}` is the same for a whole search, but {where} varies or sets "
                "it; give it as a parameter of 06_tune"
            )
        checked = _check_own if name in OWN else check
        dimension = _read_dimension(name, text, checked, where)
        if dimension:
            dimensions.append(dimension)
        else:
            shared[name] = checked(name, text)
    if not dimensions:
        raise ValueError(
            f"{where} should vary something, but sets single values alone; write "
            f"lines such as `lr: log 0.0003 0.003` ({_FORMS})"
        )
    return Space(dimensions, shared)


def _check_own(name: str, value: Any) -> Value:
    if name == "trial" and value not in KINDS:
        raise ValueError(f"`trial` must be one of {', '.join(KINDS)}, not {value!r}")
    if name == "trial":
        return str(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"`{name}` must be a number over 0, but {value!r} came")
    return number


def _read_dimension(name: str, text: Any, check: Check, where: str) -> Dimension | None:
    """None for a single value."""
    words = str(text).strip()
    if words.startswith("any of"):
        return _read_choices(name, words.removeprefix("any of"), check, where)
    found = _RANGE.fullmatch(words)
    if not found:
        if re.match(r"(log|float|int|any|one of)\b", words):
            raise ValueError(f"`{name}: {words}` ({where}) should be {_FORMS}")
        return None
    form, ends = found[1], [check(name, found[2]), check(name, found[3])]
    if not all(isinstance(end, int | float) and end is not True for end in ends):
        raise ValueError(f"`{name}` ({where}) is no number; write `any of A, B`")
    low, high = float(ends[0]), float(ends[1])  # type: ignore[arg-type]
    if form != "int" and isinstance(ends[0], int):
        raise ValueError(f"`{name}` ({where}) is whole; write `int {low:g} {high:g}`")
    if low >= high or (form == "log" and low <= 0):
        raise ValueError(
            f"`{name}: {words}` ({where}) should go from a lower to a higher number"
            + (", both over 0" if form == "log" else "")
        )
    return Dimension(name, form, low, high, ())


def _read_choices(name: str, words: str, check: Check, where: str) -> Dimension:
    choices = [check(name, word.strip().strip("\"'")) for word in words.split(",")]
    if any(isinstance(choice, list) for choice in choices):
        raise ValueError(f"`{name}` ({where}) is a list and cannot be varied")
    if len(choices) != len(set(choices)):
        raise ValueError(f"`{name}` ({where}) names a choice twice; keep one")
    return Dimension(name, "any", 0.0, 0.0, choices)


def as_plain(space: Space) -> dict[str, Any]:
    """The space as JSON has it."""
    return {
        "dimensions": [
            asdict(d) | {"choices": list(d.choices)} for d in space.dimensions
        ]
    } | {"shared": dict(space.shared)}


def from_plain(plain: Mapping[str, Any]) -> Space:
    """The space that `as_plain` wrote."""
    return Space([Dimension(**d) for d in plain["dimensions"]], plain["shared"])


def suggest(trial: Any, space: Space) -> dict[str, Value]:
    """Values of one Optuna trial; a probe is asked only what it depends on."""
    by_name = {dimension.name: dimension for dimension in space.dimensions}
    values: dict[str, Value] = dict(OWN) | dict(space.shared)
    if "trial" in by_name:
        values["trial"] = _suggest(trial, by_name.pop("trial"))
    for name, dimension in by_name.items():
        wanted = name in PROBED if values["trial"] == "probe" else name != "strength"
        if wanted:
            values[name] = _suggest(trial, dimension)
    return values


def _suggest(trial: Any, dimension: Dimension) -> Value:
    name, low, high = dimension.name, dimension.low, dimension.high
    if dimension.form == "any":
        return trial.suggest_categorical(name, list(dimension.choices))
    if dimension.form == "int":
        return trial.suggest_int(name, int(low), int(high))
    return trial.suggest_float(name, low, high, log=dimension.form == "log")
