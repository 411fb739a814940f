"""Classes put together from smaller decisions: attributes, or superclass, then class.

Every way is a product of softmaxes. The classifier gives the logits of all of them
side by side, in blocks: one block an attribute, or one for the superclasses and one
for the members of each. A class's log-probability is the sum of its log-softmaxes, a
fixed 0/1 matrix [logits × classes], so that a model still names K classes and nothing
after it changes. In training the head gives the bare logits and each block is a loss
of its own; their sum is the likelihood of the class. Source: the chain rule; Silla
and Freitas 2011 for the cascade. Limits: attributes count as independent, given the
picture; rows of values that are no class get no probability.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from sklearn.cluster import AgglomerativeClustering
from torch import nn

from sketchlib import workspace
from sketchlib.data import attributes, manifest
from sketchlib.training import features, heads, losses
from sketchlib.training.recipe import Recipe

HOWS = ("combined", "per_attribute", "cascade")
SUPERCLASS = "superclass"


@dataclass(frozen=True)
class Asked:
    """The parameters of 03_train that say what a class is made of.

    Attributes:
        targets: `combined` is one softmax over the classes, `per_attribute` one for
            each attribute, `cascade` superclasses first, then their classes.
        attributes: columns of train.csv; empty for those that make the label.
        superclasses: of a cascade: a CSV or YAML mapping, a column of train.csv, or
            empty to learn them from frozen features of each fold's training rows.
        superclass_count: superclasses to learn.
    """

    targets: str
    attributes: Sequence[str]
    superclasses: str
    superclass_count: int


@dataclass(frozen=True)
class Targets:
    """How classes are put together; flat, so that it can be written to a file.

    Attributes:
        how: one of `HOWS`.
        names: the attributes, or `superclass`.
        codes: (A, K) the value of each class; empty where they are learned.
        learned: superclasses to learn in each fold; 0 is none.
    """

    how: str = "combined"
    names: Sequence[str] = ()
    codes: Sequence[Sequence[int]] = ()
    learned: int = 0


COMBINED = Targets()


@dataclass(frozen=True)
class Blocks:
    """Softmaxes side by side, and which of their logits make a class.

    Attributes:
        sizes: logits of each block; V in all.
        places: (T, K) the T logits whose log-softmaxes sum to a class.
    """

    sizes: tuple[int, ...]
    places: np.ndarray

    @property
    def width(self) -> int:
        """V."""
        return int(sum(self.sizes))

    @property
    def matrix(self) -> np.ndarray:
        """(V, K) float32 of 0 and 1."""
        made = np.zeros((self.width, self.places.shape[1]), np.float32)
        for row in self.places:
            made[row, np.arange(len(row))] = 1
        return made

    @property
    def starts(self) -> list[int]:
        """First logit of each block."""
        return [0, *np.cumsum(self.sizes)[:-1].tolist()]


# --- from the parameters ------------------------------------------------------


def read_targets(
    asked: Asked, head: str, data_dir: Path, columns: manifest.Columns
) -> tuple[Targets, attributes.Parts | None]:
    """How the classes are put together, and what they are made of, if anything.

    Args:
        asked: the parameters.
        head: how the classifier starts, `folds.Network.head`.
        data_dir: with `train.csv`.
        columns: names of its columns.
    Raises:
        ValueError, FileNotFoundError: an unknown choice, settings that contradict,
            or a table that does not say what is asked.
    """
    check_asked(asked, head, columns)
    parts = attributes.read_parts(data_dir, columns, asked.attributes)
    if asked.targets == "combined":
        return COMBINED, parts
    table = manifest.read_manifest(data_dir, columns)
    classes = manifest.class_names(table)
    if asked.targets == "per_attribute":
        assert parts is not None  # `check_asked`
        attributes.check_distinct(parts, classes)
        return Targets("per_attribute", parts.names, parts.codes), parts
    if not asked.superclasses:
        _check_count(asked.superclass_count, len(classes), "superclass_count")
        return Targets("cascade", (SUPERCLASS,), (), asked.superclass_count), parts
    given = asked.superclasses
    path = workspace.resolve_path(given) if Path(given).suffix else None
    coarse = attributes.read_grouping(given, data_dir, columns, path)
    made = attributes.make_parts([SUPERCLASS], [coarse.tolist()])
    _check_count(len(made.values[0]), len(classes), "superclasses")
    return Targets("cascade", made.names, made.codes), parts


def check_asked(asked: Asked, head: str, columns: manifest.Columns) -> None:
    """Raise ValueError for settings that are unknown or contradict."""
    if asked.targets not in HOWS:
        raise ValueError(
            f"`targets` should be one of {', '.join(HOWS)}, but {asked.targets!r} came"
        )
    clashes = {
        "`targets` per_attribute needs to know the attributes; list their columns in "
        "`attributes`, or make the label of them, as in `columns: [image_path, "
        "mask+gender+age]`": asked.targets == "per_attribute"
        and not (asked.attributes or columns.made_of),
        f"`superclasses` is read by `targets` cascade, but `targets` is "
        f"{asked.targets}; leave it empty": bool(asked.superclasses)
        and asked.targets != "cascade",
        f"`head` transplant copies one row a class, but `targets` {asked.targets} has "
        "rows of smaller decisions; use `head` probe or random": head == "transplant"
        and asked.targets != "combined",
    }
    for told, holds in clashes.items():
        if holds:
            raise ValueError(told)


def _check_count(count: int, classes: int, name: str) -> None:
    if not 2 <= count < classes:
        raise ValueError(
            f"`{name}` should make 2 to {classes - 1} superclasses of {classes} "
            f"classes, but makes {count}; a cascade of one step is `targets` combined"
        )


# --- blocks ---------------------------------------------------------------------


def make_blocks(targets: Targets) -> Blocks | None:
    """The softmaxes of the targets; None where there is only one, over the classes."""
    if targets.how == "combined":
        return None
    codes = np.asarray(targets.codes, np.int64)  # (A, K)
    if targets.how == "per_attribute":
        sizes = codes.max(axis=1) + 1
        starts = np.cumsum(sizes) - sizes
        return Blocks(tuple(map(int, sizes)), codes + starts[:, None])
    coarse = codes[0]
    members = np.bincount(coarse)
    first = len(members) + np.cumsum(members) - members  # of each superclass's block
    rank = pd.Series(coarse).groupby(coarse).cumcount().to_numpy()
    sizes = (len(members), *map(int, members))
    return Blocks(sizes, np.stack([coarse, first[coarse] + rank]))


def learn_groups(
    found: np.ndarray, labels: np.ndarray, classes: int, count: int
) -> np.ndarray:
    """(K,) superclass of each class, from the likeness of their mean features.

    Ward's clustering (scikit-learn) of the mean direction of each class. A class
    without a picture joins the largest group.

    Args:
        found: (n, D) frozen features.
        labels: (n,) class numbers.
        classes: K.
        count: superclasses wanted.
    """
    values = found.astype(np.float64)
    values = (values - values.mean(0)) / np.maximum(values.std(0), 1e-6)
    present = np.unique(labels)
    means = np.stack([values[labels == label].mean(0) for label in present])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    wanted = min(count, len(present))
    groups = AgglomerativeClustering(wanted).fit_predict(means)
    made = np.full(classes, np.bincount(groups).argmax())
    made[present] = groups
    return np.unique(made, return_inverse=True)[1]


def resolve(
    targets: Targets, found: np.ndarray | None, labels: np.ndarray, classes: int
) -> Targets:
    """The targets with their groups learned, where they are to be.

    Args:
        targets: as asked.
        found: (n, D) features of the training rows; None where nothing is learned.
        labels: (n,) their classes.
        classes: K.
    """
    if not targets.learned or found is None:
        return targets
    groups = learn_groups(found, labels, classes, targets.learned)
    codes = (tuple(map(int, groups)),)
    return dataclasses.replace(targets, codes=codes, learned=0)


def tell(targets: Targets, classes: Sequence[str]) -> str:
    """The superclasses of a cascade in words, the largest first."""
    codes = np.asarray(targets.codes[0])
    names = np.asarray(classes)
    order = np.bincount(codes).argsort(kind="stable")[::-1]
    groups = [names[codes == code] for code in order]
    told = [" ".join(group[:4]) + " …" * (len(group) > 4) for group in groups]
    return f"{len(groups)} superclasses: {' | '.join(told)}"


def tell_untrained(targets: Targets, classes: Sequence[str], labels: np.ndarray) -> str:
    """Which classes have no picture among `labels`, and what that means; empty: none.

    Args:
        targets: how classes are put together.
        classes: K names.
        labels: (n,) classes of the training rows.
    """
    absent = sorted(set(range(len(classes))) - set(labels.tolist()))
    if not absent:
        return ""
    some = ", ".join(classes[label] for label in absent[:5]) + ", …" * (len(absent) > 5)
    put = targets.how == "per_attribute"
    means = "they are put together from their attributes" if put else "it cannot learn"
    return f"trains without a picture of {some}; {means}"


# --- the classifier -------------------------------------------------------------


class ComposedHead(nn.Module):
    """A classifier of V logits; in eval mode log-probabilities of the K classes."""

    def __init__(self, inner: nn.Module, blocks: Blocks) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("sizes", torch.tensor(blocks.sizes))
        self.register_buffer("places", torch.tensor(blocks.places))

    @functools.cached_property
    def blocks(self) -> Blocks:
        """What the buffers say."""
        sizes, places = self.get_buffer("sizes"), self.get_buffer("places")
        return Blocks(tuple(sizes.tolist()), places.cpu().numpy())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, D) → (B, V) in training, else (B, K)."""
        logits = self.inner(inputs)
        return logits if self.training else self.compose(logits)

    def compose(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, V) logits → (B, K) log-probabilities, in full precision."""
        parts = logits.float().split(self.blocks.sizes, dim=-1)
        logs = torch.cat([part.log_softmax(-1) for part in parts], dim=-1)
        places = self.get_buffer("places")
        return logs[:, places].sum(1)  # (B, T, K) → (B, K)


def compose_classifier(
    model: nn.Module, blocks: Blocks, layers: str, *, hidden: int, drop_rate: float
) -> None:
    """Put a composed classifier in the place of the model's own, in place.

    Args:
        model: with K outputs, made by `models.make_model`.
        blocks: of K classes.
        layers: form of the classifier; see `heads.make_head`.
        hidden: units of the hidden layer of `mlp`.
        drop_rate: dropout inside the head, 0-1.
    Raises:
        ValueError: the model does not end in a linear layer.
    """
    name = heads.classifier_name(model)
    old = model.get_submodule(name) if name else None
    first = old[0] if isinstance(old, nn.Sequential) else old
    if not isinstance(first, nn.Linear):
        raise ValueError(
            "`targets` other than combined replace a linear classifier, but this model "
            f"ends in {old}; use another model"
        )
    inner = heads.make_head(
        layers, first.in_features, blocks.width, hidden=hidden, drop_rate=drop_rate
    )
    model.set_submodule(name, ComposedHead(inner, blocks))


def find_head(model: nn.Module) -> ComposedHead | None:
    """The composed classifier of a model, or the head itself; None without one."""
    found = [part for part in model.modules() if isinstance(part, ComposedHead)]
    return found[0] if found else None


def read_blocks(path: Path) -> Blocks | None:
    """The blocks of a head in a safetensors file; None where it has none."""
    with safe_open(path, "pt") as tensors:
        keys = [key for key in tensors.keys() if key.split(".")[-1] == "places"]  # noqa: SIM118
        if not keys:
            return None
        stem = keys[0].removesuffix("places")
        sizes = tensors.get_tensor(f"{stem}sizes").tolist()
        return Blocks(tuple(sizes), tensors.get_tensor(keys[0]).numpy())


def start_from_probes(
    head: ComposedHead, found: np.ndarray, labels: np.ndarray, strength: float
) -> None:
    """Start every block from a linear probe of its own; see `features.start_layer`.

    Args:
        head: with a linear layer of V outputs.
        found: (views, n, D) frozen features.
        labels: (n,) class numbers.
        strength: inverse regularisation C, > 0.
    """
    blocks = head.blocks
    shown = blocks.matrix[:, labels].T  # (n, V)
    for start, size in zip(blocks.starts, blocks.sizes, strict=True):
        part = shown[:, start : start + size]
        rows = np.flatnonzero(part.sum(axis=1) > 0)
        own = part[rows].argmax(axis=1)
        if len(np.unique(own)) > 1:
            probe = features.fit_probe(found[:, rows], own, strength)
            features.start_layer(head.inner, probe, range(start, start + size))


# --- the loss -------------------------------------------------------------------


class ComposedLoss(losses.Loss):
    """The recipe's loss of every block, summed.

    A picture counts in the blocks that its class uses; a mixture of two by their
    shares. Without smoothing the sum of cross-entropies is that of the class.
    """

    def __init__(self, recipe: Recipe, blocks: Blocks, labels: np.ndarray) -> None:
        super().__init__(recipe, torch.ones(blocks.width))
        self.sizes = list(blocks.sizes)
        self.matrix = torch.tensor(blocks.matrix.T)  # (K, V)
        shown = blocks.matrix[:, labels].T  # (n, V)
        self.blocks = []
        for start, size in zip(blocks.starts, self.sizes, strict=True):
            part = shown[:, start : start + size]
            own = part[part.sum(axis=1) > 0].argmax(axis=1)
            kind = recipe.class_weights
            weights = losses.make_class_weights(own, size, kind)
            self.blocks.append(losses.Loss(recipe, weights))

    def to(self, device: str) -> "ComposedLoss":
        """The loss with its tensors on `device`."""
        self.matrix = self.matrix.to(device)
        for block in self.blocks:
            block.class_weights = block.class_weights.to(device)
        return self

    def __call__(
        self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The weighted mean over the batch, summed over the blocks.

        Args:
            logits: (B, V) float32.
            targets: (B,) class numbers, or (B, K) shares that sum to 1.
            weights: (B,) of the pictures, ≥ 0.
        """
        shares = losses.soften(targets, len(self.matrix), 0.0) @ self.matrix  # (B, V)
        whole = weights.sum().clamp(min=1e-12)
        total = logits.sum() * 0  # keeps the graph where no block is asked
        for block, part, share in zip(
            self.blocks,
            logits.split(self.sizes, dim=1),
            shares.split(self.sizes, dim=1),
            strict=True,
        ):
            counts = share.sum(1)  # (B,) 1 where the picture's class uses the block
            asked = counts > 0
            if not asked.any():
                continue
            own = weights[asked] * counts[asked]
            truth = share[asked] / counts[asked, None]
            total = total + block(part[asked], truth, own) * own.sum() / whole
        return total


def make_loss(
    model: nn.Module, recipe: Recipe, labels: np.ndarray, classes: int, device: str
) -> losses.Loss:
    """The loss that fits the model's classifier, weighted for these labels.

    Args:
        model: or the head alone.
        recipe: see there.
        labels: (n,) classes of the training rows.
        classes: K.
        device: of the logits.
    """
    head = find_head(model)
    if head is not None:
        return ComposedLoss(recipe, head.blocks, labels).to(device)
    weights = losses.make_class_weights(labels, classes, recipe.class_weights)
    return losses.Loss(recipe, weights.to(device))
