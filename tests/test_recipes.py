import pytest

from sketchlib.training import recipes, transforms


def parse(lines):
    return recipes.parse_steps(lines, "x.yaml")


def test_the_librarys_recipes_are_without_mistakes():
    for name in recipes.names():
        recipes.check_recipe(name)
        assert all(isinstance(line, str) for line in recipes.describe(name))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["rotat"], "did you mean 'rotate'"),
        ([{"rotate": {"degree": 10}}], "`rotate` in x.yaml.*did you mean 'degrees'"),
        ([{"rotate": {"degrees": "1e1"}}], "`rotate.degrees`.*0 to 180, but '1e1'"),
        ([{"rotate": {"degrees": 400}}], "0 to 180, but 400"),
        ([{"rotate": 10}], "arguments of `rotate`"),
        ([{"flip": {}, "rotate": {}}], "- name"),
        ({"flip": {}}, "list of steps"),
        ([{"one_of": {"steps": []}}], "name `steps`"),
        ([{"one_of": {"step": ["flip"]}}], "did you mean 'steps'"),
        ([{"one_of": {"steps": ["flop"]}}], "did you mean 'flip'"),
        ([{"from_epoch": 3}, {"from_epoch": 1}], "3 or more, but 1"),
        ([{"A.Rotat": {}}], "did you mean 'A.Rotate'"),
        ([{"A.Affine": {"cval": 255}}], "`A.Affine` in x.yaml.*'cval' came"),
        ([{"A.Rotate": {"limit": "far"}}], "cannot use"),
    ],
)
def test_f47_a_misspelt_name_or_argument_is_an_error(lines, message):
    with pytest.raises(ValueError, match=message):
        parse(lines)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'affine_boxes'"):
        transforms.make_recipe("afine_boxes")


def test_what_is_not_said_is_the_usual_value():
    (step,) = parse([{"rotate": {"p": 0.2}}])
    assert (step.chance, dict(step.args)) == (0.2, {"degrees": 15})


def test_stages_begin_at_their_epoch():
    steps = parse(["flip", {"from_epoch": 2}, "rotate", {"from_epoch": 5}, "grid"])
    assert [step.from_epoch for step in steps] == [0, 2, 5]


def test_white_is_filled_in_by_albumentations_too():
    (step,) = parse([{"A.Affine": {"rotate": [10, 20]}}])
    assert dict(step.args)["fill"] == 255


def test_a_user_writes_a_recipe_without_touching_the_library(tmp_path, monkeypatch):
    monkeypatch.setenv("SKETCHBOOK_ROOT", str(tmp_path))
    folder = tmp_path / "params" / "recipes"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("- flip\n- rotate: {degrees: 5}\n")
    assert "mine" in recipes.names()
    assert len(recipes.read_recipe("mine")) == 2
    (folder / "mine.yaml").write_text("- flip\n- rotate: {degreees: 5}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml.*did you mean 'degrees'"):
        recipes.check_recipe("mine")
    (folder / "mine.yaml").write_text("- [")
    with pytest.raises(ValueError, match="should be YAML"):
        recipes.check_recipe("mine")


def test_the_winner_of_a_race_is_found(tmp_path):
    assert recipes.find_winner("flip", tmp_path) == "flip"
    with pytest.raises(FileNotFoundError, match="run 02_augmentation"):
        recipes.find_winner("winner", tmp_path)
    (tmp_path / "augmentation").mkdir()
    (tmp_path / "augmentation" / "winner.yaml").write_text("augment: noise_blur\n")
    assert recipes.find_winner("winner", tmp_path) == "noise_blur"
    assert recipes.find_winner("winner:augmentation", tmp_path) == "noise_blur"
