"""Products of softmaxes: their algebra, their losses, and that they learn."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from recipes import FP32, TINY, make
from test_attributes import MADE, write_people
from test_folds import task  # noqa: F401

from sketchlib import workspace
from sketchlib.data import manifest
from sketchlib.training import (
    bank,
    composites,
    folds,
    launch,
    losses,
    recipe,
    trained,
)
from sketchlib.workbook import parameters

CROSSED = composites.Targets(  # 2 × 3, all six classes
    "per_attribute", ("ink", "side"), ((0, 0, 0, 1, 1, 1), (0, 1, 2, 0, 1, 2))
)
CHAIN = composites.Targets("cascade", ("superclass",), ((1, 0, 1, 2, 0, 1),))
HEAD = make(
    frozen=True, norm="still", epochs=30, batch_size=16, lr=0.02, augment="none"
)
ASKED = composites.Asked("combined", [], "", 3)


def draw_logits(targets, rows=7, seed=0):
    blocks = composites.make_blocks(targets)
    generator = torch.Generator().manual_seed(seed)
    return blocks, torch.randn(rows, blocks.width, generator=generator)


def compose(blocks, logits):
    return composites.ComposedHead(torch.nn.Identity(), blocks).eval()(logits)


class TestAlgebra:
    def test_attributes_are_the_product_of_their_softmaxes(self):
        blocks, logits = draw_logits(CROSSED)
        made = compose(blocks, logits).exp()
        ink, side = logits[:, :2].softmax(1), logits[:, 2:].softmax(1)
        for number in range(6):
            wanted = ink[:, number // 3] * side[:, number % 3]
            torch.testing.assert_close(made[:, number], wanted)
        torch.testing.assert_close(made.sum(1), torch.ones(7))  # every row is a class

    @pytest.mark.parametrize("targets", [CROSSED, CHAIN])
    def test_it_is_a_product_with_a_matrix_of_0_and_1(self, targets):
        blocks, logits = draw_logits(targets)
        matrix = torch.tensor(blocks.matrix)
        assert set(matrix.unique().tolist()) == {0.0, 1.0}
        logs = torch.cat([p.log_softmax(1) for p in logits.split(blocks.sizes, 1)], 1)
        torch.testing.assert_close(compose(blocks, logits), logs @ matrix)

    def test_a_cascade_is_superclass_times_class_and_sums_to_one(self):
        blocks, logits = draw_logits(CHAIN)
        made = compose(blocks, logits).exp()
        torch.testing.assert_close(made.sum(1), torch.ones(7))
        row = logits[0]
        coarse = row[:3].softmax(0)  # superclass 0 holds 1 and 4; 1: 0, 2, 5; 2: 3
        within = [row[3:5].softmax(0), row[5:8].softmax(0), torch.ones(1)]
        for superclass, members in enumerate(([1, 4], [0, 2, 5], [3])):
            for place, number in enumerate(members):
                wanted = coarse[superclass] * within[superclass][place]
                torch.testing.assert_close(made[0, number], wanted)
            mass = made[0, members].sum()
            torch.testing.assert_close(mass, coarse[superclass])

    def test_rows_that_are_no_class_leave_the_rest(self):
        four = dataclasses.replace(CROSSED, codes=((0, 0, 1, 1), (0, 1, 1, 2)))
        blocks, logits = draw_logits(four)
        made = compose(blocks, logits).exp()
        assert (made.sum(1) < 1).all()
        torch.testing.assert_close(
            made[:, 3], logits[:, :2].softmax(1)[:, 1] * logits[:, 2:].softmax(1)[:, 2]
        )


class TestLoss:
    LABELS = np.array([0, 1, 2, 3, 4, 5, 5])

    @pytest.mark.parametrize("targets", [CROSSED, CHAIN])
    def test_the_sum_of_cross_entropies_is_that_of_the_class(self, targets):
        blocks, logits = draw_logits(targets)
        loss = composites.ComposedLoss(make(), blocks, self.LABELS)
        truth, weights = torch.tensor(self.LABELS), torch.rand(7) + 0.1
        wanted = torch.nn.functional.nll_loss(
            compose(blocks, logits), truth, reduction="none"
        )
        wanted = (wanted * weights).sum() / weights.sum()
        torch.testing.assert_close(loss(logits, truth, weights), wanted)

    def test_attributes_are_losses_of_their_own(self):
        rule = make(loss="focal", label_smoothing=0.1)
        blocks, logits = draw_logits(CROSSED)
        loss = composites.ComposedLoss(rule, blocks, self.LABELS)
        ones = torch.ones(7)
        ink, side = torch.tensor(self.LABELS) // 3, torch.tensor(self.LABELS) % 3
        wanted = losses.Loss(rule, torch.ones(2))(logits[:, :2], ink, ones)
        wanted = wanted + losses.Loss(rule, torch.ones(3))(logits[:, 2:], side, ones)
        torch.testing.assert_close(
            loss(logits, torch.tensor(self.LABELS), ones), wanted
        )

    @pytest.mark.parametrize("targets", [CROSSED, CHAIN])
    def test_a_mixture_is_the_mixture_of_its_losses(self, targets):
        blocks, logits = draw_logits(targets, rows=1)
        loss = composites.ComposedLoss(make(), blocks, self.LABELS)
        shares = torch.zeros(1, 6)
        shares[0, 1], shares[0, 3] = 0.3, 0.7
        one = torch.ones(1)
        wanted = 0.3 * loss(logits, torch.tensor([1]), one)
        wanted = wanted + 0.7 * loss(logits, torch.tensor([3]), one)
        torch.testing.assert_close(loss(logits, shares, one), wanted)

    def test_parts_of_a_batch_add_up_to_the_batch(self):
        blocks, logits = draw_logits(CHAIN)
        loss = composites.ComposedLoss(make(), blocks, self.LABELS)
        truth, weights = torch.tensor(self.LABELS), torch.rand(7) + 0.1
        parts = [slice(0, 3), slice(3, 7)]
        summed = sum(
            loss(logits[p], truth[p], weights[p]) * weights[p].sum() for p in parts
        )
        whole = loss(logits, truth, weights)
        torch.testing.assert_close(summed / weights.sum(), whole)

    def test_class_weights_are_those_of_the_values(self):
        rule = make(class_weights="inverse")
        labels = np.array([0, 0, 0, 0, 1, 2, 3])  # ink: six of 0, one of 1
        loss = composites.ComposedLoss(rule, composites.make_blocks(CROSSED), labels)
        wanted = losses.make_class_weights((labels // 3), 2, "inverse")
        torch.testing.assert_close(loss.blocks[0].class_weights, wanted)


@pytest.fixture
def drawn(rng):
    """Features in which ink and side can be read, and the six classes of both."""
    labels = np.repeat(np.arange(6), 20)
    features = rng.normal(size=(1, 120, 12)).astype(np.float16)
    features[:, np.arange(120), labels // 3] += 9
    features[:, np.arange(120), 2 + labels % 3] += 9
    ids = np.array([f"train/{number}" for number in range(120)])
    return bank.Bank(features, ids, ["plain"]), labels


def fit(made, labels, rows, targets, layers="linear"):
    train = bank.Rows(made.image_ids[rows], labels[rows])
    held = bank.Rows(made.image_ids, labels)
    blocks = composites.make_blocks(targets)
    form = bank.Form(layers, 16, 0.1)
    head, history = bank.fit_head(
        made, train, held, HEAD, form, classes=6, blocks=blocks
    )
    found = bank.predict(head, made, made.image_ids, list("abcdef"), tta=(), fold=0)
    return found, history


@pytest.mark.parametrize("layers", ["linear", "mlp", "multi_dropout"])
@pytest.mark.parametrize("targets", [CROSSED, CHAIN], ids=lambda one: one.how)
def test_every_attribute_of_separable_drawings_is_learned(drawn, targets, layers):
    made, labels = drawn
    found, history = fit(made, labels, np.arange(120), targets, layers)
    assert (found.labels // 3 == labels // 3).mean() > 0.97
    assert (found.labels % 3 == labels % 3).mean() > 0.97
    accuracy = (found.labels == labels).mean()
    assert accuracy > 0.97
    assert history["valid_accuracy"].iloc[-1] == pytest.approx(accuracy)


def test_a_class_never_trained_on_is_put_together_from_its_attributes(drawn):
    made, labels = drawn
    rows = np.flatnonzero(labels != 5)
    apart, _ = fit(made, labels, rows, CROSSED)
    assert (apart.labels[labels == 5] == 5).mean() > 0.95
    whole, _ = fit(made, labels, rows, composites.COMBINED)
    assert (whole.labels[labels == 5] == 5).mean() < 0.05


def test_groups_are_learned_from_the_likeness_of_classes(rng):
    labels = np.repeat(np.arange(6), 15)
    near = np.array([0, 1, 0, 2, 1, 0])
    found = rng.normal(size=(90, 8)) * 0.3
    found[np.arange(90), near[labels]] += 4
    found[np.arange(90), 3 + labels % 5] += 1
    groups = composites.learn_groups(found, labels, 6, 3)
    same = groups[:, None] == groups[None]
    assert (same == (near[:, None] == near[None])).all()
    seven = composites.learn_groups(found, labels, 7, 3)  # one without a picture
    assert len(seven) == 7
    assert sorted(set(seven.tolist())) == [0, 1, 2]
    chain = dataclasses.replace(CHAIN, codes=(tuple(groups),))
    told = composites.tell(chain, list("abcdef"))
    assert told == "3 superclasses: a c f | b e | d"


class TestAsked:
    def read(self, folder, head="probe", columns=MADE, **changes):
        asked = dataclasses.replace(ASKED, **changes)
        return composites.read_targets(asked, head, folder, columns)

    def test_the_ways_it_can_be_asked(self, tmp_path):
        write_people(tmp_path)
        made, parts = self.read(tmp_path)
        assert made == composites.COMBINED
        assert parts.names == ("mask", "gender", "age")
        made, _ = self.read(tmp_path, targets="per_attribute")
        blocks = composites.make_blocks(made)
        assert blocks.sizes == (2, 2, 2)
        assert (blocks.matrix.sum(axis=0) == 3).all()
        made, _ = self.read(tmp_path, targets="cascade", superclasses="gender")
        assert composites.make_blocks(made).sizes == (2, 4, 2)
        made, _ = self.read(tmp_path, targets="cascade")
        assert made.learned == 3

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"targets": "per_atribute"}, "one of combined, per_attribute, cascade"),
            ({"superclasses": "mask"}, "read by `targets` cascade"),
            ({"targets": "cascade", "superclass_count": 9}, "2 to 5 superclasses of 6"),
            ({"targets": "cascade", "superclasses": "mask", "head": "transplant"},
             "use `head` probe"),
            ({"targets": "per_attribute", "attributes": ["mask", "age"]}, "tells them"),
            ({"attributes": ["mask", "agee"]}, "did you mean 'age'"),
            ({"targets": "cascade", "superclasses": "gone.csv"}, "gone.csv"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_done_is_refused_before_work(self, tmp_path, changes, told):
        write_people(tmp_path)
        with pytest.raises((ValueError, FileNotFoundError), match=told):
            self.read(tmp_path, **changes)

    def test_attributes_must_be_known_for_a_head_each(self, tmp_path):
        write_people(tmp_path, target=list(range(6)))
        columns = manifest.make_columns(["image_path"])
        with pytest.raises(ValueError, match="list their columns in `attributes`"):
            self.read(tmp_path, columns=columns, targets="per_attribute")

    def test_choices_are_those_of_the_notebook(self):
        schema = parameters.read_parameters(parameters.find_notebook("03_train"))
        assert schema["targets"].choices == composites.HOWS
        for field in dataclasses.fields(composites.Asked):
            assert schema[field.name].help


@pytest.fixture
def crossed(task):  # noqa: F811
    """The four shapes as 2 × 2: round or not, drawn with one stroke or more."""
    targets = composites.Targets(
        "per_attribute", ("round", "strokes"), ((0, 0, 1, 1), (0, 1, 0, 1))
    )
    return dataclasses.replace(task, targets=targets)


class TestFolds:
    def test_a_fold_names_classes_and_can_be_loaded_again(self, crossed):
        result = folds.train_fold(crossed, 0)
        assert list(result.oof.classes) == ["circle", "cross", "square", "stairs"]
        model = trained.load_model(crossed.run_dir, 0, crossed.network, 4)
        head = composites.find_head(model)
        assert head.blocks.sizes == (2, 2)
        _, valid, _ = folds.make_examples(crossed, 0)
        again = folds.predictions.predict(
            model, valid, result.oof.classes, way=FP32, tta=("hflip",), fold=0
        )
        np.testing.assert_allclose(again.probs, result.oof.probs, atol=1e-5)

    def test_other_targets_are_another_task(self, crossed):
        first = folds.train_fold(crossed, 0)
        plain = dataclasses.replace(crossed, targets=composites.COMBINED)
        second = folds.train_fold(plain, 0)
        assert not np.array_equal(first.oof.logits, second.oof.logits)
        assert composites.find_head(trained.load_model(
            crossed.run_dir, 0, crossed.network, 4
        )) is None  # fmt: skip

    def test_an_unfinished_fold_of_another_grouping_is_not_continued(self, crossed):
        model = TINY.make(4)
        _, fold_dir = folds.make_examples(crossed, 0), crossed.run_dir / "fold0"
        train, valid, _ = folds.make_examples(crossed, 0)

        def stop(row):
            raise folds.loop.Stopped

        TINY.compose(model, composites.make_blocks(crossed.targets))
        given = {"way": FP32, "fold_dir": fold_dir}
        with pytest.raises(folds.loop.Stopped):
            folds.loop.fit(model, train, valid, make(), **given, on_epoch=stop)
        other = dataclasses.replace(crossed.targets, codes=((0, 1, 0, 1), (0, 0, 1, 1)))
        model = TINY.make(4)
        TINY.compose(model, composites.make_blocks(other))
        with pytest.raises(ValueError, match="differs in targets"):
            folds.loop.fit(model, train, valid, make(), **given)

    def test_groups_are_learned_from_the_training_rows_of_the_fold(
        self, crossed, capsys
    ):
        learned = composites.Targets("cascade", ("superclass",), (), 2)
        chain = dataclasses.replace(crossed, targets=learned)
        result = folds.train_fold(chain, 0)
        assert "2 superclasses: " in capsys.readouterr().out
        model = trained.load_model(chain.run_dir, 0, chain.network, 4)
        assert sorted(composites.find_head(model).blocks.sizes)[-1] >= 2
        assert composites.find_head(model).blocks.width == 6
        np.testing.assert_allclose(result.oof.probs.sum(1), 1, atol=1e-6)

    def test_classes_without_a_training_picture_are_named(self, crossed, capsys):
        rows = crossed.table["class_name"] == "stairs"
        ids = crossed.table.loc[rows, "image_id"]
        split = crossed.folds.copy()
        split.loc[split["image_id"].isin(ids), "fold"] = 0
        folds.train_fold(dataclasses.replace(crossed, folds=split), 0)
        told = capsys.readouterr().out
        assert "fold 0 trains without a picture of stairs" in told
        assert "put together from their attributes" in told

    def test_heads_on_a_bank_leave_a_run_that_can_be_looked_into(self, crossed):
        network = dataclasses.replace(
            TINY, model="tf_efficientnet_lite0", weights="auto"
        )
        rule = make(frozen=True, norm="still", epochs=2)
        ready = dataclasses.replace(crossed, recipe=rule, network=network)
        ready = folds.with_bank(ready, 1, ())
        result = folds.train_fold(ready, 0)
        model = trained.load_model(ready.run_dir, 0, ready.network, 4)
        assert composites.find_head(model).blocks.sizes == (2, 2)
        _, valid, _ = folds.make_examples(ready, 0)
        again = folds.predictions.predict(
            model, valid, result.oof.classes, way=FP32, tta=("hflip",), fold=0
        )
        np.testing.assert_allclose(again.probs, result.oof.probs, atol=0.02)

    def test_the_task_travels_to_other_processes(self, crossed):
        path = launch.write_task(crossed, 0)
        again, _ = launch.read_task(path)
        one, two = (composites.make_blocks(t.targets) for t in (crossed, again))
        assert one.sizes == two.sizes
        assert (one.places == two.places).all()


def test_every_block_starts_from_a_probe_of_its_own(drawn):
    made, labels = drawn
    found = made.features.astype(np.float32)
    for targets in (CROSSED, CHAIN):
        blocks = composites.make_blocks(targets)
        head = composites.ComposedHead(torch.nn.Linear(12, blocks.width), blocks)
        composites.start_from_probes(head, found, labels, 1.0)
        named = head.eval()(torch.tensor(found[0])).argmax(1).numpy()
        assert (named == labels).mean() > 0.97


def test_a_network_that_ends_otherwise_is_refused():
    model = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(ValueError, match="replace a linear classifier"):
        composites.compose_classifier(
            model, composites.make_blocks(CROSSED), "linear", hidden=0, drop_rate=0.0
        )


def test_mixed_precision_and_averages_leave_the_places_whole():
    workspace.seed_everything(0)
    model = timm.create_model("test_resnet", num_classes=6)
    composites.compose_classifier(
        model, composites.make_blocks(CROSSED), "linear", hidden=0, drop_rate=0.0
    )
    state = model.state_dict()
    mean = folds.loop.checkpoints.average_weights([state, state])
    for key, value in state.items():
        assert mean[key].dtype == value.dtype
        torch.testing.assert_close(mean[key], value)
    assert pd.Series(list(state)).str.contains("places").any()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.eval()(torch.zeros(2, 3, 32, 32))
    assert logits.dtype == torch.float32


def test_the_recipe_knows_nothing_of_targets():
    names = {field.name for field in dataclasses.fields(recipe.Recipe)}
    assert "targets" not in names
