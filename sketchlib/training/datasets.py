"""Rows of a pixel cache as batches.

Pixels stay uint8 and, for grey drawings, one channel until they are on the device;
`to_input` normalises there. The epoch travels inside the sampler's index, so that
draws and what changes with the epoch (recipe, side) are right whatever the number of
loader workers. Several processes (see `processes`) share every batch between them.
Limits: the order of an epoch is drawn whole in each of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from sketchlib.data import cache
from sketchlib.training import processes, transforms
from sketchlib.training.recipe import Stage, find_stage

Index = tuple[int, int]  # (draw, position)
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # pictures, labels, positions
REPEAT = 10**6  # draw = epoch + REPEAT · how often the row came before in this epoch


@dataclass(frozen=True)
class Examples:
    """Some rows of a cache with their labels.

    Attributes:
        pixels: the cache.
        rows: (n,) row numbers in it.
        labels: (n,) int64 class numbers; -1 where unknown.
        weights: (n,) share of each in the loss; ones where not given.
    """

    pixels: cache.PixelCache
    rows: np.ndarray
    labels: np.ndarray
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.rows):
            object.__setattr__(self, "weights", np.ones(len(self.rows)))

    @property
    def image_ids(self) -> np.ndarray:
        return self.pixels.image_ids[self.rows]


class SketchDataset(Dataset):
    """Pictures of `Examples`, augmented by a recipe or left as they are.

    `stages` say which recipe and side hold in which epoch, where they change.
    """

    def __init__(
        self,
        examples: Examples,
        augment: str,
        seed: int,
        stages: Sequence[Stage] = (),
    ) -> None:
        self.examples = examples
        self.seed = seed
        self.stages = stages or (Stage(0, augment, 1.0, 0),)
        self._recipes = {
            stage.augment: transforms.make_recipe(stage.augment)
            for stage in self.stages
        }

    def __len__(self) -> int:
        return len(self.examples.rows)

    def __getitem__(self, index: Index) -> tuple[torch.Tensor, int, int]:
        """(C, S, S) uint8 picture, label, position."""
        position = index[1]
        drawn = self.draw(index)
        return as_tensor(drawn), int(self.examples.labels[position]), position

    def __getitems__(self, indices: Sequence[Index]) -> Batch:
        """The batch of `indices`, stacked once instead of picture by picture."""
        positions = np.array([position for _, position in indices])
        targets = torch.from_numpy(self.examples.labels[positions])
        images = as_batch([self.draw(index) for index in indices])
        return images, targets, torch.from_numpy(positions)

    def draw(self, index: Index) -> np.ndarray:
        """(S, S) or (S, S, 3) uint8, augmented."""
        draw, position = index
        stage = find_stage(self.stages, draw % REPEAT)
        row = int(self.examples.rows[position])
        pixels = np.asarray(self.examples.pixels.pixels[row])
        if stage.side_px and stage.side_px != pixels.shape[0]:
            size = (stage.side_px, stage.side_px)
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        recipe = self._recipes[stage.augment]
        return transforms.draw(recipe, pixels, self.seed, draw, row)


class EpochSampler(Sampler[Index]):
    """(draw, position), shuffled anew each epoch or in order.

    `how` is one of `recipe.SAMPLERS`; `start` leaves out the first of the epoch, for
    one that was interrupted.
    """

    def __init__(
        self, labels: np.ndarray, seed: int, *, shuffle: bool, how: str = "plain"
    ) -> None:
        self.labels = labels
        self.seed = seed
        self.shuffle = shuffle
        self.how = how
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return count_draws(self.labels, self.how)

    def __iter__(self) -> Iterator[Index]:
        order = np.arange(len(self.labels))
        if self.shuffle:
            rng = np.random.default_rng([self.seed, self.epoch])
            order = rng.permutation(draw_positions(self.labels, self.how, rng))
        came: dict[int, int] = {}
        indices: list[Index] = []
        for position in map(int, order):
            times = came.get(position, 0)
            came[position] = times + 1
            indices.append((self.epoch + REPEAT * times, position))
        return iter(indices[self.start :])


def count_draws(labels: np.ndarray, how: str) -> int:
    """How many pictures an epoch shows under the sampler `how`."""
    counts = np.unique(labels, return_counts=True)[1]
    if how == "up":
        return int(counts.max() * len(counts))
    return int(counts.min() * len(counts)) if how == "down" else len(labels)


def draw_positions(
    labels: np.ndarray, how: str, rng: np.random.Generator
) -> np.ndarray:
    """Positions an epoch shows, unshuffled; see `recipe.Recipe.sampler`."""
    if how == "plain":
        return np.arange(len(labels))
    classes, inverse, counts = np.unique(
        labels, return_inverse=True, return_counts=True
    )
    if how == "weighted":
        chances = 1 / counts[inverse] / len(classes)
        return rng.choice(len(labels), len(labels), p=chances)
    each = counts.max() if how == "up" else counts.min()
    drawn = []
    for number in range(len(classes)):
        own = rng.permutation(np.flatnonzero(inverse == number))
        drawn.append(np.resize(own, each))  # repeats in turn, or cuts
    return np.concatenate(drawn)


class SharedBatches(BatchSampler):
    """This process's part of every batch; together the parts are the batch."""

    def __iter__(self) -> Iterator[list[Any]]:  # torch declares int, we have Index
        for batch in super().__iter__():
            if part := batch[processes.rank() :: processes.count()]:
                yield part

    def total(self, step: int) -> int:
        """Pictures in batch `step` of an epoch, over all processes."""
        whole: Any = self.sampler
        return min(self.batch_size, len(whole) - step * self.batch_size)


def make_loader(
    dataset: SketchDataset,
    batch_size: int,
    *,
    workers: int,
    training: bool,
    how: str = "plain",
) -> DataLoader:
    """Batches of (image uint8 (B, C, S, S), target (B,), position (B,)).

    A training epoch leaves out a last batch that gives a process one picture or
    none, on which batch norm cannot work. Set `loader.batch_sampler.sampler.epoch`
    before each epoch.
    """
    sampler: Any = EpochSampler(
        dataset.examples.labels, dataset.seed, shuffle=training, how=how
    )
    rest, least = len(sampler) % batch_size, 2 * processes.count()
    lone = training and 0 < rest < least and len(sampler) > batch_size
    return DataLoader(
        dataset,
        batch_sampler=SharedBatches(sampler, batch_size, drop_last=lone),
        collate_fn=_as_it_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_quiet_worker,
        timeout=120 if workers else 0,  # a stalled network disk: an error, not a hang
    )


def _as_it_is(batch: Any) -> Any:
    """What `SketchDataset` gives is a batch already."""
    return batch


def _quiet_worker(_: int) -> None:
    """Keep each worker to its own core: OpenCV otherwise starts one thread a core."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """(S, S) → (1, S, S); (S, S, 3) → (3, S, S); uint8 either way."""
    if pixels.ndim == 2:
        return torch.from_numpy(np.array(pixels[None]))
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1)))


def as_batch(pictures: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
    """B pictures (S, S) → (B, 1, S, S); (S, S, 3) → (B, 3, S, S), channels last."""
    stacked = torch.from_numpy(np.stack(list(pictures)))
    return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)


def as_picture(tensor: torch.Tensor) -> np.ndarray:
    """(1, S, S) → (S, S); (3, S, S) → (S, S, 3): a tensor to look at."""
    pixels = tensor.cpu().numpy()
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


def measure_stats(
    pixels: cache.PixelCache,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the readable pictures, three channels, pixels 0-1.

    Args:
        pixels: a cache, grey or colour; its first 4,000 readable pictures are taken.
    """
    seen = pixels.pixels[np.flatnonzero(pixels.readable)[:4000]]
    flat = seen.reshape(-1, seen.shape[3] if seen.ndim == 4 else 1)
    mean, std = flat.mean(axis=0) / 255, flat.std(axis=0) / 255
    times = 3 // len(mean)
    return tuple(mean.tolist() * times), tuple(np.maximum(std, 0.01).tolist() * times)


def to_input(
    images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """Normalise on the device: uint8 (B, 1 or 3, S, S) → float32 (B, 3, S, S).

    Args:
        images: pixels 0-255.
        mean: (3,) of the model, for pixels 0-1.
        std: (3,) likewise.
    """
    scale, shift = 1 / (255 * std), -mean / std
    last = images.is_contiguous(memory_format=torch.channels_last)
    if last and images.shape[1] == 3:  # rows of r g b r g b, or there are loops of 3
        size, _, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(size * height, width * 3).float()
        rows.mul_(scale.repeat(width)).add_(shift.repeat(width))
        return rows.view(size, height, width, 3).permute(0, 3, 1, 2)
    scaled = images.float() * scale.view(1, 3, 1, 1)  # grey broadcasts
    return scaled.add_(shift.view(1, 3, 1, 1))  # in place: new pages cost more
