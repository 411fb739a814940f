"""A notebook's parameter cell as a schema: names, types, ranges, help.

The cell tagged `parameters` is the one place for defaults. One parameter a line:

    epochs: int = 12                  # passes over the training rows; >= 1
    lr: float = 3.0e-4                # peak, per 64 images; > 0
    mix_probability: float = 0.5      # share of mixed batches; 0..1
    recipe: str = "pen"               # augmentation; one of: none, pen, heavy
    models: list[str] = []            # timm names

The comment is the help. A part of it between `;` or `,` that is nothing but a
comparison (`>= 1`, `≥ 1`, `> 0`, `<= 1`, `< 1`), a closed range (`0..1`) or a
list of choices (`one of: a, b, c`, up to the next `;` or the end; `""` for "off")
is a rule; of a list it holds for every element. papermill's own inspection skips
a line with two `=` (it then warns, wrongly, of an unknown parameter), so notebooks
that are also run by bare papermill should write `≥ 1` or `1..99`.
Read by `ast`, not executed, and nothing heavy is imported: a typo costs
milliseconds, not a kernel. Limits: only int, float, str, bool and flat lists.
"""

import ast
import contextlib
import dataclasses
import difflib
import io
import json
import math
import operator
import os
import re
import tokenize
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sketchlib import workspace

Value = int | float | str | bool | list[Any]

COMMAND_LINE = "-p on the command line"

_ELEMENTS = {"list": "", "list[str]": "str", "list[int]": "int", "list[float]": "float"}
_TYPES = ("int", "float", "str", "bool", *_ELEMENTS)
_COMPARE = {
    ">=": operator.ge,
    "≥": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "≤": operator.le,
    "<": operator.lt,
}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_BOUND = re.compile(rf"(>=|≥|>|<=|≤|<)\s*({_NUMBER})")
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})")
_CHOICES = re.compile(r"\bone of:\s*([^;]*)")
_SWITCHES = dict.fromkeys(("true", "yes", "on", "1"), True)
_SWITCHES |= dict.fromkeys(("false", "no", "off", "0"), False)
_SECRETS = {"token", "password", "passwd", "secret", "apikey", "credential"}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One line of the parameter cell.

    `bounds` holds (comparison, number) pairs that every number must satisfy;
    `choices` the texts allowed, empty for any.
    """

    name: str
    type: str
    default: Value
    help: str = ""
    bounds: tuple[tuple[str, float], ...] = ()
    choices: tuple[str, ...] = ()


Schema = dict[str, Parameter]


# --- reading the cell -------------------------------------------------------


def find_notebook(given: str) -> Path:
    """The notebook meant by a path, a file stem (`03_train`) or a bare name (`train`).

    Raises:
        FileNotFoundError: there is none, with the nearest name.
    """
    folder = workspace.repo_root() / "notebooks"
    stem = given.removesuffix(".ipynb")
    for path in (Path(given), Path(f"{stem}.ipynb"), folder / f"{stem}.ipynb"):
        if path.is_file():
            return Path(os.path.abspath(path))
    known = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    bare = {re.sub(r"^\d+_", "", name): path for name, path in known.items()}
    if stem in bare:
        return bare[stem]
    raise FileNotFoundError(
        f"no notebook `{given}` here or in {folder}{suggest(stem, [*known, *bare])}; "
        f"there are: {', '.join(known) or 'none'}"
    )


def read_notebook(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The notebook as plain JSON, every cell's `source` joined to one text.

    Raises:
        ValueError: the file is not a notebook of format 4.
    """
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"`{path}` should be a Jupyter notebook, but it is not JSON ({error}); "
            "restore it from git, or save it again in JupyterLab"
        ) from error
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise ValueError(
            f"`{path}` should be a Jupyter notebook of format 4, but it has no list "
            "of cells; open and save it in JupyterLab"
        )
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell.get("source", ""))
    return notebook


def read_parameters(path: str | os.PathLike[str]) -> Schema:
    """The schema in the notebook's cell tagged `parameters`, in the cell's order.

    Raises:
        ValueError: no such cell, or a line that is not `name: type = value`.
    """
    for cell in read_notebook(path)["cells"]:
        tags = cell.get("metadata", {}).get("tags", [])
        if cell.get("cell_type") == "code" and "parameters" in tags:
            return parse_cell(cell["source"], Path(path).name)
    raise ValueError(
        f"`{Path(path).name}` should have a code cell tagged `parameters`, but none "
        "is; tag it in JupyterLab (property inspector, Cell Tags)"
    )


def parse_cell(source: str, where: str) -> Schema:
    """The schema in the source of a parameter cell of the notebook `where`.

    Raises:
        ValueError: a line is not `name: type = value`, or contradicts itself.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(
            f"line {error.lineno} of the parameters of `{where}` is not Python "
            f"({error.msg}); write `name: type = value  # meaning`"
        ) from error
    comments = _read_comments(source)
    schema: Schema = {}
    for node in tree.body:
        parameter = _parse_line(node, comments.get(node.end_lineno or 0, ""), where)
        if parameter.name in schema:
            raise ValueError(f"`{parameter.name}` stands twice in `{where}`; keep one")
        schema[parameter.name] = parameter
    return schema


def _read_comments(source: str) -> dict[int, str]:
    """Line number → the comment on that line, without its hash."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _parse_line(node: ast.stmt, comment: str, where: str) -> Parameter:
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
        raise ValueError(
            f"the parameters of `{where}` must be lines `name: type = value`, but line "
            f"{node.lineno} is `{ast.unparse(node)[:60]}`; move it to another cell"
        )
    name, kind = node.target.id, ast.unparse(node.annotation)
    if kind not in _TYPES:
        raise ValueError(
            f"`{name}` in `{where}` must be one of {', '.join(_TYPES)}, "
            f"but its type is `{kind}`"
        )
    _check_not_secret(name)
    default = _read_default(node, name, where)
    bounds, choices = _parse_rules(comment)
    parameter = Parameter(name, kind, default, comment, bounds, choices)
    checked = coerce(parameter, default, f"its default in `{where}`")
    return dataclasses.replace(parameter, default=checked)


def _read_default(node: ast.AnnAssign, name: str, where: str) -> Any:
    try:
        return ast.literal_eval(node.value) if node.value else None
    except ValueError as error:
        raise ValueError(
            f"`{name}` in `{where}` must have a plain value as default, but "
            f"`{ast.unparse(node)[:60]}` computes one; write the value out"
        ) from error


def _parse_rules(
    comment: str,
) -> tuple[tuple[tuple[str, float], ...], tuple[str, ...]]:
    """Bounds and choices written in a parameter's comment; see the module's head."""
    found = _CHOICES.search(comment)
    choices = [text.strip() for text in found[1].split(",")] if found else []
    bounds: list[tuple[str, float]] = []
    for part in re.split(r"[,;()]", _CHOICES.sub("", comment)):
        if bound := _BOUND.fullmatch(part.strip()):
            bounds.append((bound[1], float(bound[2])))
        elif closed := _RANGE.fullmatch(part.strip()):
            bounds += [("≥", float(closed[1])), ("≤", float(closed[2]))]
    return tuple(bounds), tuple(text.strip("\"'`") for text in choices)


# --- reading what was asked -------------------------------------------------


def read_overrides(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The flat `name: value` pairs of a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not hold a mapping, or a key twice, or no YAML at all.
    """
    found = read_yaml(path)
    for key in found:
        if not isinstance(key, str):
            raise ValueError(
                f"the parameter names in `{path}` must be text, but YAML reads one as "
                f"{key!r}; quote it"
            )
    return found


def read_yaml(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """The mapping in a YAML file, an empty file counting as an empty mapping.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not YAML, not a mapping, or a key that stands twice.
    """
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no parameter file `{path}`; look in {workspace.repo_root() / 'params'}"
        )
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        found = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"`{path}` should be YAML, but it cannot be read: {reason}"
        ) from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(
            f"`{path}` should hold lines `name: value`, but it holds a "
            f"{type(found).__name__}"
        )
    _check_unrepeated([key.value for key, _ in node.value], path)
    return found


def _check_unrepeated(keys: Sequence[Any], path: str | os.PathLike[str]) -> None:
    for key in keys:
        if keys.count(key) > 1:  # YAML silently takes the last one
            raise ValueError(f"`{key}` stands twice in `{path}`; keep one of them")


def check_overrides(
    schema: Schema, overrides: dict[str, Any], where: str
) -> dict[str, Value]:
    """What was asked, each value as its parameter's type means it.

    Args:
        schema: the notebook's parameters.
        overrides: names and raw values; text is read as its type ("3e-4", "true").
        where: the file or command line they came from, for the message.

    Raises:
        ValueError: unknown name (with the nearest one), wrong type, out of range,
            not finite, or a secret.
    """
    checked = {}
    for name, value in overrides.items():
        _check_not_secret(name)
        check_known(name, schema, where)
        checked[name] = coerce(schema[name], value, where)
    return checked


def check_known(name: str, known: Iterable[str], where: str) -> None:
    """Raise ValueError, with the nearest name, unless `name` is among `known`."""
    names = list(known)
    if name not in names:
        hint = suggest(name, names) or f"; there are: {', '.join(names)}"
        raise ValueError(f"no parameter is called `{name}` ({where}){hint}")


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` when something like `name` is known, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean `{near[0]}`?" if near else ""


def _check_not_secret(name: str) -> None:
    """Parameters are written into notebook, HTML and run.json for all to read."""
    lowered = name.lower()
    words = set(lowered.split("_"))
    if words & _SECRETS or "api_key" in lowered or "access_key" in lowered:
        raise ValueError(
            f"`{name}` looks like a secret, and parameters are written into the "
            "executed notebook and its report; use an environment variable "
            f"({name.upper()}) instead"
        )


def resolve_given(schema: Schema, pairs: Iterable[Sequence[str]]) -> dict[str, str]:
    """`-p NAME VALUE` pairs as a mapping; paths made absolute from the current folder.

    A path is a text parameter whose name ends in `_dir` or `_file`; empty stays empty.
    """
    given: dict[str, str] = {}
    for name, value in pairs:
        known = schema.get(name)
        is_path = known and known.type == "str" and name.endswith(("_dir", "_file"))
        given[name] = absolute(value) if is_path and value else value
    return given


def absolute(path: str) -> str:
    """`path` seen from the current folder."""
    return os.path.abspath(os.path.expanduser(path))


# --- one value --------------------------------------------------------------


def coerce(parameter: Parameter, value: Any, where: str) -> Value:
    """`value` as the parameter's type means it, within its rules.

    Raises:
        ValueError: it cannot be, in one sentence that names what came and where.
    """
    if parameter.type in _ELEMENTS:
        items = _as_items(parameter, value, where)
        element = _ELEMENTS[parameter.type]
        typed: Value = [
            _as_scalar(element, item, parameter, where) if element else item
            for item in items
        ]
    else:
        typed = _as_scalar(parameter.type, value, parameter, where)
    _check_rules(parameter, typed, where)
    return typed


def _as_items(parameter: Parameter, value: Any, where: str) -> list[Any]:
    """The elements meant by a list, by `[1, 2]` as text, or by `a,b` as text."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            return _parse_list(text, parameter, where)
        return [item.strip() for item in text.split(",")] if text else []
    if isinstance(value, list | tuple):
        if any(isinstance(item, list | tuple | dict) for item in value):
            raise _refusal(parameter, value, where)
        return list(value)
    raise _refusal(parameter, value, where)


def _parse_list(text: str, parameter: Parameter, where: str) -> list[Any]:
    """`[1, 2]` or `[a, b]` typed on a command line."""
    if not text.endswith("]"):
        raise _refusal(parameter, text, where)
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # bare words: [pen, ink]
        inside = text[1:-1].strip()
        return [item.strip().strip("\"'") for item in inside.split(",") if item.strip()]
    return _as_items(parameter, items, where)


def _as_scalar(kind: str, value: Any, parameter: Parameter, where: str) -> Value:
    reader: dict[str, Callable[[Any], Value]] = {
        "int": _as_int,
        "float": _as_float,
        "bool": _as_bool,
        "str": _as_str,
    }
    try:
        return reader[kind](value)
    except (ValueError, TypeError, OverflowError) as error:
        raise _refusal(parameter, value, where) from error


def _as_int(value: Any) -> int:
    number = _as_float(value)
    if not number.is_integer():
        raise ValueError
    with contextlib.suppress(ValueError):  # a text such as 3e2
        return int(value)
    return int(number)


def _as_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.strip().lower() not in _SWITCHES:
        raise ValueError
    return _SWITCHES[value.strip().lower()]


def _as_str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _refusal(parameter: Parameter, value: Any, where: str) -> ValueError:
    what = {"int": "a whole number", "float": "a finite number", "str": "text"}
    what |= {"bool": "true or false"}
    expected = what.get(parameter.type, f"a flat {parameter.type}")
    hint = ""
    if parameter.type == "str" and isinstance(value, bool | int | float):
        hint = "; YAML reads it so, put it in quotes"
    elif value is None:
        hint = '; for "off" write 0, "" or []'
    return ValueError(
        f"`{parameter.name}` must be {expected}, but {value!r} "
        f"({type(value).__name__}) came from {where}{hint}"
    )


def _check_rules(parameter: Parameter, value: Value, where: str) -> None:
    for item in value if isinstance(value, list) else [value]:
        if parameter.choices and str(item) not in parameter.choices:
            near = suggest(str(item), parameter.choices)
            allowed = ", ".join(choice or '""' for choice in parameter.choices)
            raise ValueError(
                f"`{parameter.name}` must be one of {allowed}, but {item!r} came from "
                f"{where}{near}"
            )
        for sign, bound in parameter.bounds:
            if isinstance(item, int | float) and not _COMPARE[sign](item, bound):
                raise ValueError(
                    f"`{parameter.name}` must be {sign} {bound:g}, but {item:g} came "
                    f"from {where}"
                )


# --- help -------------------------------------------------------------------


def describe(schema: Schema) -> str:
    """The parameters as an aligned table of name, type, default and help."""
    rows = [
        (p.name, p.type, json.dumps(p.default, ensure_ascii=False), p.help)
        for p in schema.values()
    ]
    wide = [max(len(row[column]) for row in rows) if rows else 0 for column in range(3)]
    return "\n".join(
        f"  {row[0]:<{wide[0]}}  {row[1]:<{wide[1]}}  {row[2]:<{min(wide[2], 34)}}  "
        f"{row[3]}".rstrip()
        for row in rows
    )
