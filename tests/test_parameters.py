import math

import pytest
from papermill import inspect_notebook
from toys import PARAMETERS, write_notebook

from sketchlib.workbook import parameters

CELL = """\
# --- where
data_dir: str = "data"            # the drawings
# --- training
epochs: int = 12                  # passes over the training rows; >= 1
lr: float = 3.0e-4                # peak, per 64 images; > 0
mix_probability: float = 0.5      # share of mixed batches (0..1)
flip: bool = True                 # mirror half
recipe: str = ""                  # one of: "", pen, heavy; off is ""
folds: list[int] = [0, 1]         # which to train, ≥ 0
models: list[str] = []            # timm names
scales: list[float] = [1.0, 0.5]  # sizes, ≤ 1
"""


@pytest.fixture(scope="module")
def schema():
    return parameters.parse_cell(CELL, "toy.ipynb")


def check(schema, where="-p", **given):
    return parameters.check_overrides(schema, given, where)


def test_the_cell_gives_names_types_defaults_and_help_in_order(schema):
    assert list(schema)[:3] == ["data_dir", "epochs", "lr"]
    assert [schema["epochs"].type, schema["folds"].type] == ["int", "list[int]"]
    assert schema["lr"].default == 3e-4
    assert schema["lr"].help == "peak, per 64 images; > 0"


def test_rules_are_read_only_from_parts_that_are_nothing_else(schema):
    assert schema["epochs"].bounds == ((">=", 1.0),)
    assert schema["mix_probability"].bounds == (("≥", 0.0), ("≤", 1.0))
    assert schema["recipe"].choices == ("", "pen", "heavy")
    prose = parameters.parse_cell(
        "side_px: int = 5  # pictures < 10 px are dropped", "x.ipynb"
    )
    assert prose["side_px"].bounds == ()


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("lr", "3e-4", 0.0003),
        ("lr", 1, 1.0),
        ("epochs", "3", 3),
        ("epochs", 5.0, 5),
        ("epochs", "12345678901234567890", 12345678901234567890),
        ("flip", "true", True),
        ("flip", "No", False),
        ("flip", "0", False),
        ("folds", "[1,2]", [1, 2]),
        ("folds", "1,2", [1, 2]),
        ("folds", "", []),
        ("models", "[lite0, lite1]", ["lite0", "lite1"]),
        ("models", '["a b"]', ["a b"]),
        ("models", "lite0", ["lite0"]),
        ("scales", [1, "5e-1"], [1.0, 0.5]),
        ("data_dir", "007", "007"),
        ("recipe", "", ""),
    ],
)
def test_values_are_read_as_meant(schema, name, given, expected):
    found = check(schema, **{name: given})[name]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("epochs", "three", "a whole number, but 'three'"),
        ("epochs", 2.5, "a whole number, but 2.5"),
        ("epochs", True, "a whole number, but True"),
        ("epochs", "-4", "must be >= 1, but -4"),
        ("lr", "nan", "a finite number"),
        ("lr", math.inf, "a finite number"),
        ("lr", "0", "must be > 0"),
        ("mix_probability", "1.5", "must be ≤ 1"),
        ("flip", "maybe", "true or false"),
        ("flip", 1, "true or false"),
        ("folds", "[0, -1]", "must be ≥ 0, but -1"),
        ("folds", "[0, x]", "a flat list"),
        ("folds", {"a": 1}, "a flat list"),
        ("folds", [[0]], "a flat list"),
        ("scales", ["nan"], "a flat list"),
        ("recipe", "haevy", "did you mean `heavy`"),
        ("data_dir", False, "put it in quotes"),
        ("data_dir", 7, "put it in quotes"),
        ("lr", None, 'for "off" write 0'),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_it_and_its_place(
    schema, name, given, told
):
    with pytest.raises(ValueError) as refused:
        check(schema, "params/x.yaml", **{name: given})
    message = str(refused.value)
    assert told in message
    assert f"`{name}`" in message
    assert "params/x.yaml" in message
    assert "\n" not in message


def test_an_unknown_name_gets_the_nearest_known_one(schema):
    with pytest.raises(ValueError, match=r"`epoch` \(-p\); did you mean `epochs`\?"):
        check(schema, epoch=3)
    with pytest.raises(ValueError, match="there are: data_dir, epochs"):
        check(schema, zzz=3)


@pytest.mark.parametrize("name", ["hf_token", "password", "wandb_api_key", "SECRET"])
def test_a_secret_is_refused_and_sent_to_the_environment(schema, name):
    with pytest.raises(ValueError, match=f"environment variable.*{name.upper()}"):
        check(schema, **{name: "x"})
    with pytest.raises(ValueError, match="environment variable"):
        parameters.parse_cell(f'{name}: str = ""', "toy.ipynb")


def test_a_name_that_only_contains_a_secret_word_is_fine():
    assert parameters.parse_cell("prefix_tokens: int = 1", "toy.ipynb")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("import os", "must be lines `name: type = value`, but line 1 is `import os`"),
        ("epochs = 3", "must be lines `name: type = value`"),
        ("lr: float = 1 / 3", "plain value"),
        ("lr: dict = {}", "its type is `dict`"),
        ("lr: float | None = None", "its type is"),
        ("lr: float = 'x'", "finite number"),
        ("epochs: int = 0  # ≥ 1", "its default"),
        ("lr: float = 1.0\nlr: float = 2.0", "stands twice"),
        ("lr: float = ", "is not Python"),
        ("lr: float", "finite number"),
    ],
)
def test_a_line_that_is_no_parameter_is_refused_with_the_notebook_named(line, told):
    with pytest.raises(ValueError) as refused:
        parameters.parse_cell(line, "toy.ipynb")
    assert told in str(refused.value)
    assert "toy.ipynb" in str(refused.value)


def test_papermill_reads_the_same_names_types_and_defaults(tmp_path):
    notebook = write_notebook(tmp_path / "toy.ipynb")
    theirs = inspect_notebook(str(notebook))
    ours = parameters.read_parameters(notebook)
    assert list(theirs) == list(ours)
    for name, known in ours.items():
        assert theirs[name]["inferred_type_name"] == known.type
        assert theirs[name]["help"].strip() == known.help


def test_a_parameter_file_is_read_flat(tmp_path, schema):
    path = tmp_path / "a.yaml"
    path.write_text("# head\nlr: 1e-3   # a string to YAML\nfolds: [0, 2]\n", "utf-8")
    given = parameters.read_overrides(path)
    assert given["lr"] == "1e-3"
    assert check(schema, **given) == {"lr": 0.001, "folds": [0, 2]}
    path.write_text("# only a head\n")
    assert parameters.read_overrides(path) == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- lr\n- epochs\n", "holds a list"),
        ("lr: [1\n", "cannot be read"),
        ("lr: 1.0\nlr: 2.0\n", "`lr` stands twice"),
        ("on: 1\n", "as True; quote it"),
    ],
)
def test_a_broken_parameter_file_is_refused_by_name(tmp_path, text, told):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as refused:
        parameters.read_overrides(path)
    assert told in str(refused.value)
    assert "broken.yaml" in str(refused.value)


def test_a_missing_parameter_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no parameter file"):
        parameters.read_overrides(tmp_path / "gone.yaml")


def test_a_notebook_is_found_by_path_stem_or_bare_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SKETCHBOOK_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = write_notebook(tmp_path / "notebooks" / "03_train.ipynb")
    for given in ("03_train", "train", "notebooks/03_train.ipynb", str(path)):
        assert parameters.find_notebook(given) == path
    with pytest.raises(FileNotFoundError, match="did you mean `train`"):
        parameters.find_notebook("trian")


def test_a_notebook_that_is_none_says_so(tmp_path):
    path = tmp_path / "x.ipynb"
    path.write_text("<html>")
    with pytest.raises(ValueError, match="not JSON"):
        parameters.read_parameters(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="no list of cells"):
        parameters.read_parameters(path)


def test_paths_on_the_command_line_are_seen_from_the_current_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    schema = parameters.parse_cell(
        PARAMETERS + 'mask_file: str = ""\nold_dirs: list[str] = []', "x"
    )
    pairs = [("data_dir", "mine"), ("mask_file", ""), ("recipe", "pen"), ("lr", "1")]
    given = parameters.resolve_given(schema, pairs)
    assert given == {
        "data_dir": str(tmp_path / "mine"),
        "mask_file": "",
        "recipe": "pen",
        "lr": "1",
    }


def test_help_shows_every_parameter_with_its_default(schema):
    lines = parameters.describe(schema).splitlines()
    assert len(lines) == len(schema)
    assert all(name in line for name, line in zip(schema, lines, strict=True))
    assert "0.0003" in lines[2]
