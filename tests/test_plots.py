"""Figures show what their tables say, for 24 classes and for 500, in any script."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_scores import make_manifest, make_predictions

from sketchlib.analysis import (
    breakdown,
    calibration,
    closeups,
    curves,
    ensemble,
    plots,
    scores,
    search,
    sheets,
)

FEW = ["자전거", "$5 bill", "a<b>&c", *[f"class {n}" for n in range(21)]]
MANY = [f"n{1440764 + 137 * number:08d}" for number in range(500)]


@pytest.fixture(autouse=True, scope="module")
def theme():
    with mpl.rc_context():
        plots.set_theme()
        yield


@pytest.fixture(params=[FEW, MANY], ids=["24", "500"])
def world(request):
    manifest = make_manifest(request.param, 6)
    rng = np.random.default_rng(0)
    return manifest, make_predictions(manifest, request.param, rng, skill=3)


@pytest.fixture
def findings(world):
    manifest, _ = world
    rng = np.random.default_rng(1)
    count = len(manifest)
    table = pd.DataFrame(
        {
            "image_id": manifest["image_id"],
            "readable": True,
            "width": rng.integers(200, 800, count),
            "height": rng.integers(200, 800, count),
            "brightness": rng.uniform(180, 255, count),
            "ink": rng.uniform(0.01, 0.3, count),
            "flags": rng.choice(["", "text", "text;inverted"], count),
        }
    )
    table.loc[0, ["readable", "width", "height", "brightness", "ink"]] = [False] + [
        0
    ] * 4
    return table


def make_history(folds):
    rows = [
        (fold, epoch, 3 / epoch, 3.2 / epoch, 1 - 1 / epoch, 1e-3)
        for fold in range(folds)
        for epoch in range(1, 5)
    ]
    names = ["fold", "epoch", "train_loss", "valid_loss", "valid_accuracy", "lr"]
    return pd.DataFrame(rows, columns=names)


def read_texts(drawn):
    """All texts of a figure, axis labels and titles included."""
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    figure.canvas.draw()
    return [one.get_text() for one in figure.findobj(mpl.text.Text)]


def test_every_figure_draws_without_a_warning(world, findings, recwarn):
    manifest, oof = world
    folds = manifest[["image_id"]].assign(group=range(len(manifest)), fold=oof.fold)
    table = scores.score_folds(oof, manifest)
    drawn = [
        plots.plot_class_counts(manifest),
        plots.plot_sizes(findings),
        plots.plot_brightness(findings),
        plots.plot_ink(findings),
        plots.plot_flags(findings),
        plots.plot_fold_balance(folds, manifest),
        plots.plot_fold_scores(table, baseline=0.5, chance=0.002),
        closeups.plot_class_recall(breakdown.per_class(oof, manifest)),
        closeups.plot_confusion(breakdown.confusion(oof, manifest)),
        closeups.plot_reliability(calibration.reliability(oof, manifest)),
        closeups.plot_flag_accuracy(breakdown.by_flag(oof, manifest, findings)),
        curves.plot_history(make_history(3)),
    ]
    for one in drawn:
        assert isinstance(one, Axes | Figure)
        assert any(read_texts(one))
    assert [str(warning.message) for warning in recwarn] == []


def test_each_axes_function_draws_where_it_is_told(world, findings):
    manifest, oof = world
    calls = [
        (plots.plot_class_counts, manifest),
        (plots.plot_sizes, findings),
        (plots.plot_ink, findings),
        (plots.plot_flags, findings),
        (plots.plot_fold_scores, scores.score_folds(oof, manifest)),
        (closeups.plot_class_recall, breakdown.per_class(oof, manifest)),
        (closeups.plot_confusion, breakdown.confusion(oof, manifest)),
        (closeups.plot_reliability, calibration.reliability(oof, manifest)),
    ]
    for plot, table in calls:
        _, ax = plt.subplots()
        assert plot(table, ax=ax) is ax
        assert ax.get_title(loc="left")
        assert ax.get_xlabel()


def test_ensemble_figures_name_every_run(world):
    manifest, oof = world
    runs = {"first run": oof, "second run": calibration.apply_temperature(oof, 2.0)}
    found = search.search_methods(runs, manifest)
    below = closeups.plot_path(found.path).figure.axes[1]
    names = [label.get_text() for label in below.get_yticklabels()]
    assert names == list(dict.fromkeys(found.path["added"]))
    assert len(below.collections[0].get_offsets()) == len(found.path)
    texts = read_texts(closeups.plot_blend(found.table))
    assert {"first run", "second run", "soft vote"} <= set(texts)
    assert any(text.startswith("best single run") for text in texts)
    texts = read_texts(closeups.plot_agreement(ensemble.agreement(runs)))
    assert "1.00" in texts
    gains = ensemble.leave_one_out(runs, manifest).rename(
        columns={"run": "name", "adds": "gain"}
    )
    ax = plots.plot_gains(gains, subject="What each run adds")
    low, high = ax.get_xlim()
    assert low == -high, "no change stands in the middle"


def test_confusion_is_normalised_by_row_on_a_fixed_scale():
    counts = pd.DataFrame([[3, 1], [0, 8]], ["a", "b"], ["a", "b"])
    image = closeups.plot_confusion(counts).images[0]
    np.testing.assert_allclose(image.get_array(), [[0.75, 0.25], [0, 1]])
    assert image.get_clim() == (0, 1)
    assert image.get_cmap().name not in ("jet", "turbo", "rainbow")


def test_many_classes_show_the_planted_pair_first():
    counts = pd.DataFrame(np.diag(np.full(40, 9)), range(40), range(40)).rename(
        str, axis=0
    )
    counts.columns = counts.index
    counts.loc["7", "31"] = 6
    texts = read_texts(closeups.plot_confusion(counts))
    assert "7 / 31" in texts
    assert any("6" in text and "25%" in text for text in texts)


def test_no_mistake_at_all_is_drawn_too():
    counts = pd.DataFrame(np.eye(40) * 9, range(40), range(40))
    assert closeups.plot_confusion(counts).get_title(loc="left")


def test_chance_and_baseline_are_always_named():
    table = pd.DataFrame({"fold": [0, 1], "accuracy": [0.9, 0.92]})
    for chance in (0.002, 0.85):
        texts = read_texts(plots.plot_fold_scores(table, baseline=0.8, chance=chance))
        assert "baseline 0.800" in texts
        assert any(f"chance {chance:.3f}" in text for text in texts)


def test_a_single_fold_and_a_single_epoch_are_enough():
    table = pd.DataFrame({"fold": [0], "accuracy": [0.5]})
    assert plots.plot_fold_scores(table, chance=0.25)
    history = make_history(1).head(1).drop(columns=["valid_loss", "valid_accuracy"])
    assert curves.plot_history(history)


def test_classes_keep_their_colour_and_neighbours_differ():
    colours = plots.class_colours(MANY)
    assert plots.class_colours(MANY) == colours
    assert list(plots.class_colours(MANY[:24]).items()) == list(colours.items())[:24]
    shades = list(colours.values())
    assert all(a != b for a, b in zip(shades, shades[1:], strict=False))


def test_hangul_is_drawn_without_boxes(recwarn):
    has_hangul = [
        font.name
        for font in font_manager.fontManager.ttflist
        if font.name in plots._HANGUL
    ]
    if not has_hangul:
        pytest.skip("no font with Hangul is installed")
    assert len(plots.find_fonts()) >= 2
    read_texts(plots.plot_class_counts(make_manifest(["자전거", "집"], 3)))
    assert not [one for one in recwarn if "missing from" in str(one.message)]


@pytest.mark.parametrize("columns", [8, 17, 28])
@pytest.mark.parametrize(
    "text", ["n01440764", "a very long name of a class", "자전거 " * 9]
)
def test_shortened_names_fit_and_keep_both_ends(text, columns):
    short = plots.shorten(text, columns)
    assert sum(map(plots._columns, short)) <= columns
    assert short[0] == text[0]
    if short != text.strip():
        assert short[-1] == text.strip()[-1]
        assert "…" in short


class TestSheets:
    @pytest.fixture
    def pictures(self):
        rng = np.random.default_rng(2)
        shapes = [(40, 60), (300, 100), (64, 64, 3), (1, 1), (64, 64, 1)]
        return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]

    def test_tiles_keep_the_aspect_on_white(self):
        tile = sheets.fit_tile(np.zeros((50, 100), np.uint8), 40)
        assert tile.shape == (40, 40, 3)
        assert (tile[:10] == 255).all()
        assert (tile[10:30] == 0).all()
        assert (tile[30:] == 255).all()

    def test_every_sheet_is_at_most_a_notebook_wide(self, pictures):
        table = pd.DataFrame(
            {
                "image_id": [f"train/a/{n}.JPEG" for n in range(5)],
                "class_name": "a",
                "predicted": ["b"] * 4 + ["a"],
                "probability": 0.9,
            }
        )
        pairs = pd.DataFrame(
            {"image_id_a": [0, 1], "image_id_b": [2, 3], "kind": "near", "score": 0.9}
        )
        maps = np.ones((5, 7, 7))
        drawn = [
            sheets.plot_grid(pictures * 5, ["one\ntwo"] * 25, columns=12, title="Grid"),
            sheets.plot_class_sheet({"자전거": pictures, "$x": pictures * 4}, each=16),
            sheets.plot_pairs(pairs, dict(enumerate(pictures)), columns=4),
            sheets.plot_augmented(pictures[0], {"flips": pictures * 3}),
            sheets.plot_mistakes(pictures, table),
            sheets.plot_mistakes(pictures, table, cams=maps),
            sheets.plot_mistakes(pictures, table, cams={"true": maps, "other": maps}),
        ]
        for figure in drawn:
            assert isinstance(figure, Figure)
            assert figure.get_figwidth() <= plots.WIDTH + 0.5
            assert any(read_texts(figure))
        assert "→ b 0.90" in read_texts(drawn[-1])
        assert "= a 0.90" in read_texts(drawn[-1])

    def test_two_hundred_tiles_share_one_axes(self, pictures):
        """An axes a tile takes a minute to draw."""
        figure = sheets.plot_grid(pictures * 40, ["name"] * 200, columns=10)
        assert len(figure.axes) == 1

    def test_pictures_that_are_none_are_refused(self):
        with pytest.raises(ValueError, match="uint8 .* float64 .*undo the normal"):
            sheets.plot_grid([np.zeros((4, 4))], ["x"])
        with pytest.raises(ValueError, match="0 pictures and 0 captions"):
            sheets.plot_grid([], [])
        with pytest.raises(ValueError, match="1 pictures and 2 captions"):
            sheets.plot_grid([np.zeros((4, 4), np.uint8)], ["x", "y"])
