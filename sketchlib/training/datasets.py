"""Rows of a pixel cache as batches.

Pixels stay uint8 and, for grey drawings, one channel until they are on the device;
`to_input` normalises there. The epoch travels inside the sampler's index, so that
draws differ between epochs whatever the number of loader workers. Limits: one
process samples a whole epoch; accelerate shards the batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sketchlib.data import cache
from sketchlib.training import transforms

Index = tuple[int, int]  # (epoch, position)


@dataclass(frozen=True)
class Examples:
    """Some rows of a cache with their labels.

    Attributes:
        pixels: the cache.
        rows: (n,) row numbers in it.
        labels: (n,) int64 class numbers; -1 where unknown.
    """

    pixels: cache.PixelCache
    rows: np.ndarray
    labels: np.ndarray

    @property
    def image_ids(self) -> np.ndarray:
        return self.pixels.image_ids[self.rows]


class SketchDataset(Dataset):
    """Pictures of `Examples`, augmented by a recipe or left as they are."""

    def __init__(self, examples: Examples, augment: str, seed: int) -> None:
        self.examples = examples
        self.augment = augment
        self.seed = seed
        self._recipe = transforms.make_recipe(augment)

    def __len__(self) -> int:
        return len(self.examples.rows)

    def __getitem__(self, index: Index) -> tuple[torch.Tensor, int, int]:
        """(C, S, S) uint8 picture, label, position."""
        epoch, position = index
        row = int(self.examples.rows[position])
        pixels = np.asarray(self.examples.pixels.pixels[row])
        drawn = transforms.draw(self._recipe, pixels, self.seed, epoch, row)
        return as_tensor(drawn), int(self.examples.labels[position]), position


class EpochSampler(Sampler[Index]):
    """(epoch, position) for every example, shuffled anew each epoch or in order."""

    def __init__(self, examples: int, seed: int, shuffle: bool) -> None:
        self.examples = examples
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def __len__(self) -> int:
        return self.examples

    def __iter__(self) -> Iterator[Index]:
        order = np.arange(self.examples)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        return iter([(self.epoch, int(position)) for position in order])


def make_loader(
    dataset: SketchDataset, batch_size: int, *, workers: int, training: bool
) -> DataLoader:
    """Batches of (image uint8 (B, C, S, S), target (B,), position (B,)).

    A training epoch leaves out a last batch of one picture, on which batch norm
    cannot work. Set `loader.sampler.epoch` before each epoch.
    """
    sampler = EpochSampler(len(dataset), dataset.seed, shuffle=training)
    lone = training and len(dataset) % batch_size == 1 and len(dataset) > batch_size
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=lone,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_quiet_worker,
        timeout=120 if workers else 0,  # a stalled network disk: an error, not a hang
    )


def _quiet_worker(_: int) -> None:
    """Keep each worker to its own core: OpenCV otherwise starts one thread a core."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """(S, S) → (1, S, S); (S, S, 3) → (3, S, S); uint8 either way."""
    if pixels.ndim == 2:
        return torch.from_numpy(np.array(pixels[None]))
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1)))


def as_picture(tensor: torch.Tensor) -> np.ndarray:
    """(1, S, S) → (S, S); (3, S, S) → (S, S, 3): a tensor to look at."""
    pixels = tensor.cpu().numpy()
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


def to_input(
    images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """Normalise on the device: uint8 (B, 1 or 3, S, S) → float32 (B, 3, S, S).

    Args:
        images: pixels 0-255.
        mean: (3,) of the model, for pixels 0-1.
        std: (3,) likewise.
    """
    scaled = images.float() / 255.0
    return (scaled - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)  # grey broadcasts
