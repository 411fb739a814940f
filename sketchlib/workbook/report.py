"""Pages to keep: each run's executed notebook as offline HTML, and the index of runs.

nbconvert renders the cells into our own template (its lab template weighs 279 KB and
asks remote hosts for scripts). Nothing on a page is fetched and nothing from the
data can run: a content security policy forbids it, and scripts and handlers are
taken out of every piece of HTML that a notebook displayed. Code is folded by
`<details>`, so that the pages read the same without JavaScript. Limits: formulas
are shown as typed; a widget is shown as its text.
"""

import base64
import datetime
import hashlib
import html
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sketchlib import workspace
from sketchlib.workbook import display, folders, parameters

_HERE = Path(__file__).parent
_POLICY = "default-src 'none'; img-src data: file: 'self'; style-src 'unsafe-inline'"
_DROPPED = ["script", "iframe", "object", "embed", "link", "meta", "base", "form"]
_SOURCES = ("src", "srcset", "poster", "background", "data", "xlink:href")
_REMOTE = re.compile(r"\s*(https?:|//|javascript:|vbscript:|data:text)", re.IGNORECASE)
_FETCHING = re.compile(r"url\(|@import|expression\(", re.IGNORECASE)
_SHOWN = [
    "text/html",
    "text/markdown",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/latex",
    "text/plain",
]
_FILTER_SCRIPT = """
const box = document.getElementById('filter');
box.parentElement.hidden = false;
box.addEventListener('input', () => {
  const words = box.value.toLowerCase().split(/\\s+/);
  for (const row of document.querySelectorAll('tr.run'))
    row.hidden = !words.every(word => row.dataset.text.includes(word));
  for (const kind of document.querySelectorAll('section.kind'))
    kind.hidden = !kind.querySelector('tr.run:not([hidden])');
});
"""


def skip_uri_grammar() -> None:
    """Spare nbformat a second: jsonschema would compile a URI grammar at import.

    Notebook files hold no URI to check; None in `sys.modules` reads as not installed.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


# --- one run ----------------------------------------------------------------


def write_report(folder: Path, notebook: Path | None = None) -> Path:
    """Write the HTML of a run's executed notebook beside it.

    Args:
        folder: the run folder, with its `run.json`.
        notebook: the executed notebook; None for the newest one in the folder.
    Returns:
        The page, `<folder>/<notebook stem>.html`.
    Raises:
        FileNotFoundError: the folder holds no executed notebook.
    """
    skip_uri_grammar()
    nbformat = importlib.import_module("nbformat")
    notebook = notebook or _find_executed(folder)
    record = read_record(folder)
    page = _describe_run(folder, notebook, record)
    hidden = {"injected-parameters", *["parameters"][: len(page["parameters"])]}
    cells = nbformat.read(notebook, as_version=4)
    cells.cells = [
        cell for cell in cells.cells if not hidden & set(cell.metadata.get("tags", []))
    ]
    text, _ = _make_exporter().from_notebook_node(cells, resources={"sketch": page})
    return workspace.write_text(notebook.with_suffix(".html"), _add_contents(text))


def _find_executed(folder: Path) -> Path:
    found = sorted(folder.glob("*.ipynb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"`{folder}` should hold an executed notebook, but there is none; run it "
            "with `sketch run`"
        )
    return found[-1]


def _make_exporter() -> Any:
    """The exporter of nbconvert with our template and our filters."""
    from jinja2 import FileSystemLoader
    from nbconvert.exporters import HTMLExporter
    from traitlets.config import Config

    exporter = HTMLExporter(
        config=Config({"NbConvertBase": {"display_data_priority": _SHOWN}}),
        extra_loaders=[FileSystemLoader(_HERE)],
        template_file="report.html.j2",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    exporter.register_filter("harmless", make_harmless)
    exporter.register_filter("took", display.format_seconds)
    return exporter


def make_harmless(source: str) -> str:
    """HTML that a notebook displayed, without what could run or fetch.

    Text from data should have been escaped where the HTML was made; this is for
    the case that it was not.
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(source, "html.parser")
    for element in soup.find_all(_DROPPED):
        element.decompose()
    for element in soup.find_all("style"):
        if _FETCHING.search(element.get_text()):
            element.decompose()
    for element in soup.find_all(True):
        for name, value in list(element.attrs.items()):
            if _is_harmful(name.lower(), value):
                del element[name]
    for element in soup.find_all("img", src=False):
        element.decompose()
    for element in soup.find_all("img", alt=False):
        element["alt"] = ""
    for table in soup.find_all("table", class_="dataframe"):
        _align_columns(table)
    return str(soup)


def _align_columns(table: Any) -> None:
    """Texts to the left: pandas sets every column flush right, like numbers."""
    rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
    for column in zip(*rows, strict=False):
        cells = [cell for cell in column if cell.name == "td"]
        if any(re.search(r"[^\W\d_]{2}", cell.get_text()) for cell in cells):
            for cell in column:
                cell["class"] = [*cell.get("class", []), "words"]


def _is_harmful(name: str, value: Any) -> bool:
    text = " ".join(value) if isinstance(value, list) else str(value)
    if name.startswith("on") or name == "srcdoc":
        return True
    if name == "style":
        return bool(_FETCHING.search(text))
    if name in _SOURCES:
        return bool(_REMOTE.match(text))
    is_link = name in ("href", "action", "formaction")
    return is_link and bool(re.match(r"\s*(javascript|vbscript|data):", text, re.I))


def _add_contents(text: str) -> str:
    """A list of links to the page's second-level headings, where there are several."""
    found = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', text, re.S)
    links = "".join(
        f'<li><a href="#{name}">{re.sub("<[^>]+>", "", title)}</a></li>'
        for name, title in found
    )
    contents = f'<ol class="contents">{links}</ol>' if len(found) > 2 else ""
    return text.replace("<!--contents-->", contents, 1)


def _describe_run(folder: Path, notebook: Path, record: dict[str, Any]) -> Any:
    """What the template shows above the notebook."""
    rows = _list_parameters(notebook, record.get("parameters", {}))
    return {
        "name": record.get("name", folder.name),
        "notebook": notebook.stem,
        "policy": _POLICY,
        "css": _read_css(),
        "facts": _list_facts(record),
        "hypothesis": record.get("hypothesis", ""),
        "changed": [row for row in rows if row["changed"]],
        "parameters": rows,
        "provenance": _list_provenance(record),
    }


def _read_css() -> str:
    return (_HERE / "pages.css").read_text(encoding="utf-8")


def _list_parameters(notebook: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Name, value, help and whether it differs from the notebook's default."""
    try:
        schema = parameters.read_parameters(notebook)
    except ValueError:  # a notebook of someone else's, without types
        schema = {}
    own = ("runs_dir", "run_name")
    return [
        {
            "name": name,
            "value": value if isinstance(value, str) else json.dumps(value),
            "help": schema[name].help if name in schema else "",
            "changed": name in schema
            and value != schema[name].default
            and name not in own,
        }
        for name, value in values.items()
    ]


def _list_facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    score = format_score(record)
    seconds, started = record.get("seconds"), _format_date(record.get("started", ""))
    facts = [
        ("state", folders.read_state(record) or "unknown"),
        ("score", score[0]),
        ("95 % interval", score[1]),
        ("took", display.format_seconds(seconds) if seconds is not None else ""),
        ("started", started),
    ]
    return [(label, value) for label, value in facts if value]


def _list_provenance(record: dict[str, Any]) -> list[tuple[str, str]]:
    versions = record.get("versions", {})
    memory = record.get("peak_memory_mb")
    rows = [
        ("commit", str(record.get("commit", ""))),
        ("versions", ", ".join(f"{name} {value}" for name, value in versions.items())),
        ("machine", str(record.get("machine", ""))),
        ("peak memory", f"{memory:,} MiB" if memory else ""),
        ("baseline", str(record.get("baseline", ""))),
        ("finished", _format_date(str(record.get("finished", "")))),
    ]
    return [(label, value) for label, value in rows if value]


def _format_date(stamp: str) -> str:
    try:
        when = datetime.datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        return stamp
    return when.strftime("%Y-%m-%d %H:%M")


# --- scores -----------------------------------------------------------------


def read_score(record: dict[str, Any]) -> tuple[str, float, float | None, float | None]:
    """Name, value, low and high of a run's headline score.

    It is the first entry of `scores` that is not itself a bound; `oof_accuracy`
    has its interval in `oof_low` and `oof_high`. The name is empty without scores.
    """
    scores = record.get("scores") or {}
    for name, value in scores.items():
        is_bound = name.endswith(("_low", "_high"))
        if isinstance(value, int | float) and not is_bound:
            prefix = name.rpartition("_")[0] or name
            low, high = scores.get(f"{prefix}_low"), scores.get(f"{prefix}_high")
            return name, float(value), low, high
    return "", 0.0, None, None


def format_score(record: dict[str, Any]) -> tuple[str, str]:
    """The headline score and its interval as text; both empty without one."""
    name, value, low, high = read_score(record)
    if not name:
        return "", ""
    interval = f"{low:.3f} – {high:.3f}" if low is not None and high is not None else ""
    return f"{value:.3f}", interval


# --- the index --------------------------------------------------------------


def read_runs(runs_dir: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every run folder under `runs_dir` with its record, in the order of names.

    A `run.json` that cannot be read is a run in state `unreadable`, not a gap.
    """
    found = sorted(runs_dir.glob("*/run.json"))
    return [(path.parent, read_record(path.parent)) for path in found]


def read_record(folder: Path) -> dict[str, Any]:
    """The run's record; one that is missing is `not run`, a broken one `unreadable`."""
    try:
        record = workspace.read_json(folder / "run.json")
    except FileNotFoundError:
        return {"name": folder.name, "state": "not run"}
    except (ValueError, OSError):
        return {"name": folder.name, "state": "unreadable"}
    return record if isinstance(record, dict) else {"state": "unreadable"}


def write_index(runs_dir: str | os.PathLike[str]) -> Path:
    """Write `<runs_dir>/index.html`: all runs, best first within each notebook."""
    from jinja2 import Environment, FileSystemLoader

    folder = Path(runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    runs = read_runs(folder)
    digest = hashlib.sha256(_FILTER_SCRIPT.encode()).digest()
    allowed = f"script-src 'sha256-{base64.b64encode(digest).decode()}'"
    templates = Environment(loader=FileSystemLoader(_HERE), autoescape=True)
    text = templates.get_template("index.html.j2").render(
        title="Runs",
        summary=_summarise(runs),
        policy=f"{_POLICY}; {allowed}",
        css=_read_css(),
        script=_FILTER_SCRIPT,
        submission=(folder / "submission.csv").exists(),
        kinds=_group_runs(runs),
        written=time.strftime("%Y-%m-%d %H:%M"),
    )
    return workspace.write_text(folder / "index.html", text)


def _summarise(runs: Sequence[tuple[Path, dict[str, Any]]]) -> str:
    states = [folders.read_state(record) for _, record in runs]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    total = sum(record.get("seconds") or 0 for _, record in runs)
    parts = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{len(runs)} runs: {parts}; {display.format_seconds(total)} in all." * bool(
        runs
    )


def _group_runs(
    runs: Sequence[tuple[Path, dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Runs by notebook, best score first; those without a score after, by name."""
    kinds: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for folder, record in runs:
        kinds.setdefault(_find_kind(folder, record), []).append((folder, record))
    return [
        {
            "id": re.sub(r"\W+", "-", kind) or "other",
            "title": _format_kind(kind),
            "runs": _describe_rows(sorted(members, key=_rank)),
        }
        for kind, members in sorted(kinds.items())
    ]


def _find_kind(folder: Path, record: dict[str, Any]) -> str:
    """The notebook a run is of, from its record or from what lies in its folder."""
    named = record.get("notebook") or record.get("runner", {}).get("notebook")
    if named:
        return str(named)
    return next((path.stem for path in sorted(folder.glob("*.ipynb"))), "other")


def _format_kind(kind: str) -> str:
    number, _, name = kind.partition("_")
    return f"{number} · {name.replace('_', ' ')}" if number.isdigit() else kind


def _rank(run: tuple[Path, dict[str, Any]]) -> tuple[float, str]:
    name, value, _, _ = read_score(run[1])
    return (-value if name else float("inf"), run[0].name)


def _describe_rows(
    runs: Sequence[tuple[Path, dict[str, Any]]],
) -> list[dict[str, Any]]:
    scores = [read_score(record) for _, record in runs]
    ends = [e for score in scores if score[0] for e in score[1:] if e is not None]
    scale = (min(ends), max(ends)) if ends else (0.0, 1.0)
    return [_describe_row(folder, record, scale) for folder, record in runs]


def _describe_row(
    folder: Path, record: dict[str, Any], scale: tuple[float, float]
) -> dict[str, Any]:
    """What the index shows of one run; the template escapes the texts."""
    state, (score, interval) = folders.read_state(record), format_score(record)
    page = folder / f"{_find_kind(folder, record)}.html"
    has_submission = (folder / "submission.csv").exists()
    error, seconds = record.get("error") or {}, record.get("seconds")
    note = str(record.get("hypothesis") or "") or str(error.get("message", ""))[:160]
    return {
        "name": folder.name,
        "state": state or "unknown",
        "note": note,
        "href": _link(folder.name, page.name) if page.exists() else "",
        "submission": _link(folder.name, "submission.csv") if has_submission else "",
        "score": score,
        "interval": interval,
        "measure": read_score(record)[0].replace("_", " "),
        "whisker": draw_whisker(read_score(record), scale),
        "sparkline": draw_sparkline(_read_metrics(folder)),
        "took": display.format_seconds(seconds) if seconds is not None else "",
        "started": _format_date(str(record.get("started", ""))),
        "text": f"{folder.name} {state} {note} {record.get('notebook', '')}".lower(),
    }


def _link(*parts: str) -> str:
    from urllib.parse import quote

    return "/".join(quote(part) for part in parts)


def _read_metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return workspace.read_jsonl(path) if path.exists() else []


# --- small drawings ---------------------------------------------------------


def draw_whisker(
    score: tuple[str, float, float | None, float | None],
    scale: tuple[float, float],
    width: int = 90,
) -> str:
    """A dot with its interval on the scale shared by the runs of one notebook."""
    name, value, low, high = score
    if not name or low is None or high is None or scale[0] == scale[1]:
        return ""

    def place(number: float) -> float:
        return 4 + (number - scale[0]) / (scale[1] - scale[0]) * (width - 8)

    return (
        f'<svg width="{width}" height="12" role="img" aria-label="95 % interval '
        f'{low:.3f} to {high:.3f}"><line x1="{place(low):.1f}" x2="{place(high):.1f}" '
        'y1="6" y2="6" stroke="#a39f96" stroke-width="1.5"/>'
        f'<circle cx="{place(value):.1f}" cy="6" r="3" fill="#22211f"/></svg>'
    )


def draw_sparkline(records: Sequence[dict[str, Any]], width: int = 120) -> str:
    """One thin line per fold of the most telling metric; empty without two points."""
    metric = _choose_metric(records)
    lines = _split_folds(records, metric)
    values = [value for line in lines for value in line]
    if len(values) <= len(lines):
        return ""
    label = html.escape(
        f"{metric}, {len(lines)} curves, {min(values):.3g} to {max(values):.3g}"
    )
    scale = (min(values), max(values))
    drawn = "".join(_draw_line(line, scale, width) for line in lines)
    return (
        f'<svg width="{width}" height="28" role="img" aria-label="{label}">'
        f"<title>{label}</title>{drawn}</svg>"
    )


def _split_folds(records: Sequence[dict[str, Any]], metric: str) -> list[list[float]]:
    """The metric of each fold; an epoch that comes again starts its fold anew."""
    lines: dict[Any, dict[Any, float]] = {}
    for place, record in enumerate(records):
        if not isinstance(record.get(metric), int | float):
            continue
        line = lines.setdefault(record.get("fold"), {})
        epoch = record.get("epoch", place)
        if epoch in line:
            line.clear()
        line[epoch] = float(record[metric])
    return [list(line.values()) for line in lines.values()]


def _choose_metric(records: Iterable[dict[str, Any]]) -> str:
    """The recorded number that tells most: validation before training, score first."""
    names = dict.fromkeys(
        name
        for record in records
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
    for wanted in ("val.*accuracy", "accuracy", "f1", "val.*loss", "loss"):
        for name in names:
            if re.search(wanted, name):
                return name
    return ""


def _draw_line(line: Sequence[float], scale: tuple[float, float], width: int) -> str:
    span = (scale[1] - scale[0]) or 1.0
    step = (width - 8) / max(len(line) - 1, 1)
    points = [
        (4 + index * step, 24 - (value - scale[0]) / span * 20)
        for index, value in enumerate(line)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    return (
        f'<polyline points="{path}" fill="none" stroke="#6b6862" stroke-width="1"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="#a8452c"/>'
    )
