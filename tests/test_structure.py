"""The house: rooms, notebooks in git, parameter files, pins, README."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from sketchlib.workbook import parameters

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["workspace", "data", "training", "analysis", "workbook"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
UNPINNED = {"lora", "ray", "track"}  # heavy engines, of which one is chosen
PARAMS = sorted((ROOT / "params").glob("0*/**/*.yaml"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "sketchlib").rglob("*.py")), ids=str)
def test_a_room_imports_only_from_the_rooms_above_it(path):
    parts = path.relative_to(ROOT / "sketchlib").with_suffix("").parts
    allowed = ROOMS[: ROOMS.index(parts[0]) + 1] if parts[0] in ROOMS else []
    allowed = [] if parts[0] == "workspace" else allowed
    for name in imported(path):
        if name.startswith("sketchlib.") and name.split(".")[1] in ROOMS:
            assert name.split(".")[1] in allowed, f"{path.name} imports {name}"


def read_cells(path):
    return json.loads(path.read_text())["cells"]


def code_of(cell):
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_it_is_stripped_and_its_cells_have_words_for_ids(self, path):
        notebook = json.loads(path.read_text())
        assert set(notebook["metadata"]) == {"kernelspec"}
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"
        ids = [cell["id"] for cell in notebook["cells"]]
        assert len(set(ids)) == len(ids)
        for cell in notebook["cells"]:
            assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cell["id"]), cell["id"]
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [], cell["id"]
                assert cell["execution_count"] is None, cell["id"]

    def test_it_begins_with_the_question_and_ends_with_what_is_next(self, path):
        cells = read_cells(path)
        ids = [cell["id"] for cell in cells]
        assert ids[:5] == ["title", "contract", "parameters", "setup", "check"]
        assert ids[-2:] == ["finish", "next"]
        assert ids.index("headline") < 8
        assert "\n> " in code_of(cells[0])
        for word in ("*reads*", "*writes*", "*takes*"):
            assert word in code_of(cells[1])

    def test_its_cells_are_short(self, path):
        cells = [cell for cell in read_cells(path) if cell["cell_type"] == "code"]
        lengths = {
            cell["id"]: len(code_of(cell).splitlines())
            for cell in cells
            if cell["id"] != "parameters"
        }
        assert max(lengths.values()) <= 15, lengths
        assert 8 <= len(cells) <= 20
        assert not any(
            isinstance(node, ast.ClassDef)
            for cell in cells
            for node in ast.walk(ast.parse(code_of(cell)))
        )

    def test_prose_states_no_number(self, path):
        for cell in read_cells(path):
            prose = re.sub(r"`[^`]*`|\d\d · |\d\d_\w+", "", code_of(cell))
            if cell["cell_type"] == "markdown" and cell["id"] != "contract":
                assert not re.search(r"\d", prose), (cell["id"], prose)

    def test_its_parameters_have_types_and_help(self, path):
        schema = parameters.read_parameters(path)
        assert {"data_dir", "runs_dir", "run_name"} <= set(schema)
        assert all(entry.help for entry in schema.values())

    def test_bare_papermill_reads_the_same_parameters(self, path):
        from papermill import inspect_notebook

        assert set(inspect_notebook(str(path))) == set(parameters.read_parameters(path))


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.stem)
def test_every_parameter_file_fits_its_notebook(path):
    stem = path.relative_to(ROOT / "params").parts[0]
    schema = parameters.read_parameters(ROOT / "notebooks" / f"{stem}.ipynb")
    for name, value in yaml.safe_load(path.read_text()).items():
        assert name in schema, name
        expected = type(schema[name].default)
        assert type(value) is expected or (type(value), expected) == (int, float), name
    assert path.read_text().startswith("# ")


def pins():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [line for line in lines if line and not line.startswith("#")]
    return dict(line.lower().split("==") for line in found)


def test_every_dependency_is_pinned_and_every_pin_is_a_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + sum(
        (names for extra, names in extras.items() if extra not in UNPINNED), []
    )
    bounds = dict(re.split(r"[>=]=", entry.lower()) for entry in wanted)
    assert set(bounds) == set(pins())
    for name, bound in bounds.items():
        least = [int(part) for part in re.findall(r"\d+", bound)[:3]]
        exact = [int(part) for part in re.findall(r"\d+", pins()[name])[:3]]
        assert exact >= least, name


def test_the_conda_environment_installs_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert "python=3.11" in environment["dependencies"]
    assert {"pip": ["-r requirements.txt", "-e ."]} in environment["dependencies"]


def test_opencv_is_the_headless_one_alone():
    assert "opencv-python-headless" in pins()
    assert "opencv-python" not in pins()


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("sketchlib", {"numpy", "torch", "pandas"}),
        ("sketchlib.workbook.cli", {"numpy", "torch", "pandas", "papermill"}),
    ],
)
def test_nothing_heavy_is_imported_at_start(module, heavy):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not heavy & set(done.stdout.split())


def test_readme_names_only_files_and_commands_that_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(
        r"(?:params|notebooks|docs|tests|benchmarks)/[\w./-]+", text
    ):
        assert (ROOT / path.rstrip(".")).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", text):
        assert f"\n{target}:" in makefile, target
    assert len(text.splitlines()) <= 150
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (ROOT / picture).exists(), picture
