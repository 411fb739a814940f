import optuna
import pytest

from sketchlib.training import spaces
from sketchlib.workbook import searching


def write(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_form_is_read_and_typed_as_the_parameter(tmp_path):
    space = searching.read_space(
        write(
            tmp_path,
            "lr: log 0.0003 0.003\nepochs: int 2 8\ndrop_rate: float 0 0.4\n"
            "augment: any of none, affine_boxes\nfrozen: any of true, false\n"
            "side_px: 96\n",
        )
    )
    assert space.names == ["lr", "epochs", "drop_rate", "augment", "frozen"]
    assert space.dimensions[0].low == 0.0003
    assert list(space.dimensions[4].choices) == [True, False]
    assert space.shared == {"side_px": 96}
    again = spaces.from_plain(spaces.as_plain(space))
    assert again.dimensions[1].form == "int"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lrr: log 0.1 0.2", "did you mean `lr`"),
        ("lr: log 0 0.2", "must be > 0"),
        ("lr: log 0.3 0.2", "from a lower to a higher"),
        ("lr: log 0.1", "should be `log LOW HIGH`"),
        ("epochs: float 1 4", "write `int 1 4`"),
        ("fit: any of ink, padd", "did you mean `pad`"),
        ("fit: any of ink, ink", "twice"),
        ("fit: log 1 2", "must be one of"),
        ("tta: any of hflip, vflip", "cannot be varied"),
        ("run_name: any of a, b", "the same for a whole search"),
        ("lr: 0.1", "should vary something"),
        ("trial: any of train, guess", "`trial` must be one of"),
        ("strength: log -1 1", "must be a number over 0"),
        ("api_token: any of a, b", "no parameter"),
    ],
)
def test_a_wrong_space_is_refused_before_anything_runs(tmp_path, line, words):
    with pytest.raises(ValueError, match=words):
        searching.read_space(write(tmp_path, line + "\n"))


def test_a_probe_is_asked_only_what_it_depends_on(tmp_path):
    space = searching.read_space(
        write(
            tmp_path,
            "trial: any of train, probe\nlr: log 0.001 0.1\nstrength: log 0.01 1\n"
            "side_px: any of 64, 96\n",
        )
    )
    study = optuna.create_study()
    for kind, absent in (("probe", "lr"), ("train", "strength")):
        study.enqueue_trial({"trial": kind})
        trial = study.ask()
        values = spaces.suggest(trial, space)
        assert values["trial"] == kind
        assert absent not in trial.params
        assert "side_px" in trial.params
