import numpy as np
import pytest
import torch

from sketchlib.data import cache, manifest
from sketchlib.training import datasets


@pytest.fixture(scope="module")
def examples(world, tmp_path_factory):
    table = manifest.train_rows(manifest.read_manifest(world))
    geometry = cache.Geometry(32, "ink", "grey", "white")
    pixels = cache.open_pixels(table, world, geometry, tmp_path_factory.mktemp("cache"))
    return datasets.Examples(pixels, np.arange(len(table)), table["label"].to_numpy())


def one_epoch(examples, workers, epoch=0):
    dataset = datasets.SketchDataset(examples, "affine_boxes", seed=3)
    loader = datasets.make_loader(dataset, 8, workers=workers, training=True)
    loader.sampler.epoch = epoch
    batches = list(loader)
    order = torch.cat([batch[2] for batch in batches])
    pictures = torch.cat([batch[0] for batch in batches])
    return pictures[order.argsort()], order


@pytest.mark.parametrize("workers", [2, 8])
def test_f45_draws_do_not_depend_on_the_number_of_workers(examples, workers):
    alone, order = one_epoch(examples, 0)
    with_workers, order_then = one_epoch(examples, workers)
    assert torch.equal(alone, with_workers)
    assert torch.equal(order, order_then)


def test_epochs_differ_in_order_and_draws(examples):
    first, order = one_epoch(examples, 0)
    second, order_then = one_epoch(examples, 0, epoch=1)
    assert not torch.equal(first, second)
    assert not torch.equal(order, order_then)


def test_batches_are_uint8_one_channel_and_complete(examples):
    dataset = datasets.SketchDataset(examples, "none", 0)
    loader = datasets.make_loader(dataset, 5, workers=0, training=False)
    images, targets, positions = zip(*loader, strict=True)
    assert images[0].shape == (5, 1, 32, 32)
    assert images[0].dtype == torch.uint8
    assert torch.cat(positions).tolist() == list(range(len(examples.rows)))
    assert torch.cat(targets).tolist() == examples.labels.tolist()


@pytest.mark.parametrize(("rows", "batches"), [(9, 2), (8, 2), (5, 1), (1, 1)])
def test_f40_a_last_batch_of_one_is_left_out_of_training(examples, rows, batches):
    part = datasets.Examples(
        examples.pixels, examples.rows[:rows], examples.labels[:rows]
    )
    dataset = datasets.SketchDataset(part, "none", 0)
    loader = datasets.make_loader(dataset, 4, workers=0, training=True)
    assert len(list(loader)) == batches


def test_normalising_equals_numpy(rng):
    images = torch.from_numpy(rng.integers(0, 256, (2, 1, 4, 4), np.uint8))
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    made = datasets.to_input(images, mean, std).numpy()
    assert made.shape == (2, 3, 4, 4)
    for channel in range(3):
        expected = (images[:, 0].numpy() / 255 - mean[channel].item()) / std[
            channel
        ].item()
        np.testing.assert_allclose(made[:, channel], expected, atol=1e-6)
