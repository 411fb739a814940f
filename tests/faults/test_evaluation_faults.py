"""Faults 52-55: what evaluation and ensembles must refuse or survive."""

import gc
import resource
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from test_scores import CLASSES, make_manifest, make_predictions

from sketchlib.analysis import board, ensemble, gradcam, joining, scores
from sketchlib.training.predictions import Predictions


@pytest.fixture
def manifest():
    return make_manifest(CLASSES, 10)


@pytest.fixture
def run(manifest):
    return make_predictions(manifest, CLASSES, np.random.default_rng(0))


class TestRunsThatDiffer:  # row 52
    def test_another_order_of_classes_is_aligned(self, run):
        order = np.random.default_rng(1).permutation(8)
        other = replace(run, classes=run.classes[order], logits=run.logits[:, order])
        aligned = ensemble.align({"a": run, "b": other})
        np.testing.assert_array_equal(aligned["a"].logits, aligned["b"].logits)

    def test_other_classes_are_refused_by_name(self, run, manifest):
        names = np.array([*CLASSES[:-1], "class z"])
        other = replace(run, classes=names)
        with pytest.raises(ValueError, match="`b`.*'class z'.*'class h'.* missing"):
            ensemble.align({"a": run, "b": other})
        with pytest.raises(ValueError, match="'class z'.* should not be there"):
            scores.score_folds(other, manifest)

    def test_other_images_are_refused_by_name(self, run):
        ids = run.image_ids.astype(object)
        ids[3] = "train/stranger.JPEG"
        other = replace(run, image_ids=ids.astype(str))
        with pytest.raises(
            ValueError, match="only in `a` 1 .*only in `b` 1 .*stranger"
        ):
            ensemble.align({"a": run, "b": other})

    def test_a_test_set_is_not_an_oof_file(self, run, manifest):
        test = replace(run, image_ids=np.array([f"test/{n}" for n in range(80)]))
        with pytest.raises(ValueError, match="only in `test` 80"):
            ensemble.align({"oof": run, "test": test})
        with pytest.raises(ValueError, match="80 .*have none; score `oof.npz`"):
            scores.summarise(test, manifest)

    def test_other_folds_are_refused_by_name(self, run, manifest):
        fold = run.fold.copy()
        fold[5] = (fold[5] + 1) % 5
        other = replace(run, fold=fold)
        with pytest.raises(ValueError, match="differ on 1 of 80 images: 'train/.*fold"):
            ensemble.align({"a": run, "b": other})
        with pytest.raises(ValueError, match="same folds.csv"):
            scores.compare(run, other, manifest)

    def test_no_run_at_all_is_refused(self):
        with pytest.raises(ValueError, match="at least one run"):
            ensemble.align({})


class TestNumbersThatAreNoProbabilities:  # row 53
    def test_probabilities_in_place_of_logits_are_detected(self, run, manifest):
        twice = replace(run, logits=run.probs.astype(np.float32))
        with pytest.raises(ValueError, match="they are probabilities"):
            scores.summarise(twice, manifest)
        with pytest.raises(ValueError, match="run `b`: .*they are probabilities"):
            ensemble.align({"a": run, "b": twice})

    def test_nan_is_detected(self, run):
        probs = run.probs
        probs[7, 2] = np.nan
        with pytest.raises(ValueError, match="finite, but 1 of 80"):
            ensemble.make_predictions(run, probs)

    def test_rows_that_do_not_sum_to_one_are_detected(self, run):
        with pytest.raises(ValueError, match=r"row \d+ sums to 0\.5"):
            ensemble.make_predictions(run, run.probs / 2)

    def test_logits_in_place_of_probabilities_are_detected(self, run):
        with pytest.raises(ValueError, match="are these logits"):
            ensemble.make_predictions(run, run.logits.astype(float))


class TestSubmissionsThatDoNotFit:  # row 54
    @pytest.fixture
    def sample(self):
        paths = [f"{number}.JPEG" for number in range(5)]
        return pd.DataFrame({"ID": range(5), "image_path": paths, "target": 0})

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda s: s.head(4), "5 rows as the sample, but has 4"),
            (lambda s: s.iloc[::-1], "`ID` should be as in the sample, row by row"),
            (lambda s: s.assign(target=[0.0] * 5), "whole numbers, but is float64"),
            (lambda s: s.assign(target=["1"] * 5), "whole numbers, but is "),
            (lambda s: s.assign(target=[0, 1, 2, -1, 0]), "row 3 has -1"),
            (lambda s: s.assign(target=[0, 1, 2, 0, 7]), "row 4 has 7"),
            (lambda s: s.rename(columns={"ID": "id"}), "columns .* in this order"),
            (lambda s: s[["image_path", "ID", "target"]], "columns .* in this order"),
            (lambda s: s.drop(columns="target"), "columns .* in this order"),
        ],
    )
    def test_it_is_refused_before_anything_is_written(
        self, sample, spoil, message, tmp_path
    ):
        path = tmp_path / "submission.csv"
        path.write_text("the old one")
        with pytest.raises(ValueError, match=message):
            board.write_submission(
                path, spoil(sample), sample=sample, given_labels=[0, 1, 2]
            )
        assert path.read_text() == "the old one"
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda s: s.head(4), "one row per test image, 5, but has 4"),
            (lambda s: s.assign(image_path="0.JPEG"), "4 .*stand twice"),
            (
                lambda s: s.assign(image_path=[f"{n}.png" for n in range(5)]),
                "5 .*are not in test.csv",
            ),
            (lambda s: s.rename(columns={"target": "y"}), "the column `target`"),
        ],
    )
    def test_a_sample_of_another_test_set_is_refused(self, sample, spoil, message):
        train = make_manifest(["a", "b", "c"], 2)
        ids = np.array([f"test/{number}.JPEG" for number in range(5)])
        rows = pd.DataFrame({"image_id": ids, "label": -1, "subset": "test"})
        manifest = pd.concat([train, rows], ignore_index=True)
        test = Predictions(
            ids,
            np.array(["a", "b", "c"]),
            np.eye(5, 3, dtype=np.float32) * 9,
            np.full(5, -1),
        )
        with pytest.raises(ValueError, match=message):
            board.make_submission(test, spoil(sample), manifest, [0, 1, 2])
        part = joining.take_images(test, ids[:3])
        with pytest.raises(ValueError, match="each of 5 test images .* 2 .*are not"):
            board.make_submission(part, sample, manifest, [0, 1, 2])
        with pytest.raises(ValueError, match="`given_labels` .*3 classes, but has 2"):
            board.make_submission(test, sample, manifest, [0, 1])


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_vit(prefix, size):
    """A ViT of two small blocks with 0, 1 or 5 prefix tokens."""
    return timm.models.VisionTransformer(
        img_size=size,
        patch_size=8,
        num_classes=4,
        embed_dim=24,
        depth=2,
        num_heads=2,
        class_token=prefix > 0,
        reg_tokens=max(prefix - 1, 0),
        global_pool="token" if prefix else "avg",
    )


@pytest.mark.usefixtures("one_thread")
class TestMapsOfOddModels:  # row 55
    @pytest.mark.parametrize("prefix", [0, 1, 5])
    @pytest.mark.parametrize("size", [(32, 32), (32, 56), (56, 24)])
    def test_prefix_tokens_and_pictures_that_are_not_square(self, prefix, size):
        model = make_vit(prefix, size)
        assert model.num_prefix_tokens == prefix
        cams = gradcam.make_cam(model, torch.randn(2, 3, *size), torch.tensor([0, 3]))
        assert cams.shape == (2, *size)
        assert cams.dtype == np.float32
        assert (cams.min(), cams.max()) == (0, 1)

    def test_a_frozen_model_gives_the_map_of_a_free_one(self):
        model = timm.create_model("resnet10t", num_classes=4).eval()
        images = torch.randn(2, 3, 64, 64)
        free = gradcam.make_cam(model, images)
        model.requires_grad_(False)
        np.testing.assert_array_equal(gradcam.make_cam(model, images), free)
        assert not any(p.requires_grad for p in model.parameters())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_half_precision_model_is_explained_and_left_alone(self, dtype):
        model = timm.create_model("resnet10t", num_classes=4).to(dtype).train()
        images = torch.randn(2, 3, 64, 64)
        cams = gradcam.make_cam(model, images.to(dtype))
        assert cams.dtype == np.float32
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert model.training

    def test_a_thousand_pictures_do_not_make_memory_grow(self):
        model = timm.create_model("resnet10t", num_classes=4).eval()
        images = torch.randn(25, 3, 32, 32)
        for _ in range(3):
            gradcam.make_cam(model, images)
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tensors = count_tensors()
        for _ in range(40):
            gradcam.make_cam(model, images)
        assert count_tensors() <= tensors
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000
        assert not any(module._forward_hooks for module in model.modules())


def count_tensors():
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())
