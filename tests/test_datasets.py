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
    loader.batch_sampler.sampler.epoch = epoch
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


@pytest.mark.parametrize("how", ["plain", "weighted", "up", "down"])
def test_samplers_show_each_class_as_often_as_they_say(how):
    labels = np.array([0] * 12 + [1] * 6 + [2] * 3)
    sampler = datasets.EpochSampler(labels, 0, shuffle=True, how=how)
    shown = np.zeros(3)
    repeats = []
    for epoch in range(40):
        sampler.epoch = epoch
        indices = list(sampler)
        assert len(indices) == len(sampler)
        assert len(set(indices)) == len(indices)  # a repeat is another draw
        repeats.append([position for _, position in indices])
        shown += np.bincount(labels[repeats[-1]], minlength=3)
    share = shown / shown.sum()
    expected = {"plain": [12 / 21, 6 / 21, 3 / 21]}.get(how, [1 / 3] * 3)
    np.testing.assert_allclose(share, expected, atol=0.05 if how == "weighted" else 0)
    assert len(sampler) == {"plain": 21, "weighted": 21, "up": 36, "down": 9}[how]
    if how == "up":
        assert set(repeats[0]) == set(range(21))  # nothing is left out
    if how == "down":
        assert set(sum(repeats, [])) == set(range(21))  # in time, nothing is


def test_an_epoch_that_was_interrupted_shows_the_rest(examples):
    sampler = datasets.EpochSampler(examples.labels, 0, shuffle=True, how="up")
    sampler.epoch = 2
    whole = list(sampler)
    sampler.start = 16
    assert list(sampler) == whole[16:]


def test_f45_spawned_workers_draw_the_same(examples):
    alone, order = one_epoch(examples, 0)
    dataset = datasets.SketchDataset(examples, "affine_boxes", seed=3)
    loader = datasets.make_loader(dataset, 8, workers=2, training=True)
    loader.multiprocessing_context = "spawn"
    batches = list(loader)
    seen = torch.cat([batch[2] for batch in batches])
    pictures = torch.cat([batch[0] for batch in batches])
    assert torch.equal(seen, order)
    assert torch.equal(pictures[seen.argsort()], alone)


@pytest.mark.parametrize("channels", ["grey", "colour"])
def test_a_batch_is_its_pictures_one_by_one(world, tmp_path, channels):
    table = manifest.train_rows(manifest.read_manifest(world))
    geometry = cache.Geometry(32, "ink", channels, "white")
    pixels = cache.open_pixels(table, world, geometry, tmp_path)
    rows = datasets.Examples(pixels, np.arange(len(table)), table["label"].to_numpy())
    dataset = datasets.SketchDataset(rows, "affine_boxes", seed=3)
    indices = [(0, 5), (1, 2), (0, 0)]
    images, targets, positions = dataset.__getitems__(indices)
    alone = [dataset[index] for index in indices]
    assert torch.equal(images, torch.stack([one[0] for one in alone]))
    assert targets.dtype == torch.int64
    assert targets.tolist() == [one[1] for one in alone]
    assert positions.tolist() == [5, 2, 0]


def test_colour_batches_lie_as_the_network_wants_them():
    pictures = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 3), np.uint8)
    batch = datasets.as_batch(pictures)
    assert batch.shape == (4, 3, 8, 6)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    made = datasets.to_input(batch, mean, std)
    assert made.is_contiguous(memory_format=torch.channels_last)
    plain = (pictures / 255 - mean.numpy()) / std.numpy()
    assert np.abs(made.permute(0, 2, 3, 1).numpy() - plain).max() < 1e-5
    torch.testing.assert_close(made, datasets.to_input(batch.contiguous(), mean, std))
