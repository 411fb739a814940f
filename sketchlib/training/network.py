"""`Network`: which model to train, as a flat, frozen value that refuses nonsense.

Its fields are the notebook's parameters of the same names. What can be known from
names alone is checked without torch, so that a slip costs no kernel; what the model
itself has to say is checked on torch's meta device, where nothing is loaded.
"""

import dataclasses
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sketchlib.training import recipe as recipes
from sketchlib.training import sources

if TYPE_CHECKING:
    from torch import nn

    from sketchlib.data import cache
    from sketchlib.training import composites

LAYERS = ("linear", "mlp", "multi_dropout")
STARTS = ("probe", "random", "transplant")
STATS = ("model", "dataset")


def asks_batch_norm(network: "Network", recipe: recipes.Recipe) -> bool:
    """Whether training works only where no batch norm is kept as it was."""
    return network.head == "random" and recipe.norm != "learn" and not recipe.frozen


@dataclass(frozen=True)
class Network:
    """Which model to train; see `models.make_model`.

    `head` is how the classifier starts: `probe` (fitted to frozen features of the
    training rows), `transplant` (the pretrained rows of the same ImageNet classes) or
    `random`. `stats` is what pixels are normalised by: `model` (mean and deviation of
    its pretraining), `dataset` (those of the pixels, see `with_stats`), or, measured,
    `M,M,M/S,S,S` for pixels 0-1.
    """

    model: str
    weights: str
    drop_rate: float
    drop_path_rate: float
    head: str
    head_layers: str
    head_hidden: int
    mapping: str
    lora_rank: int
    side_px: int
    stats: str

    def check(self) -> None:
        """Raise ValueError or FileNotFoundError where the model cannot be made."""
        sources.check_name(self.model)
        for name, value, known in (
            ("head", self.head, STARTS),
            ("head_layers", self.head_layers, LAYERS),
            ("stats", self.stats, STATS),
        ):
            if value not in known and "/" not in value:
                raise ValueError(f"`{name}` must be one of {known}, but {value!r} came")
        if self.head != "random" and self.weights == "none":
            raise ValueError(
                f"`head` {self.head} starts from pretrained weights, but `weights` "
                "is none; use `head` random"
            )
        if self.head != "random" and self.head_layers == "mlp":
            raise ValueError(
                f"`head` {self.head} starts a linear classifier, but `head_layers` is "
                "mlp; use `head` random"
            )
        if self.lora_rank and importlib.util.find_spec("peft") is None:
            raise ValueError(
                "`lora_rank` needs peft, which is not installed; run `pip install "
                "'sketchlib[lora]'`, or set `lora_rank: 0`"
            )
        if self.mapping and self.head != "transplant":
            raise ValueError(
                f"`mapping` is read by `head` transplant, but `head` is {self.head}; "
                "leave it empty"
            )
        sources.weights_file(self.model, self.weights)

    def check_banked(self) -> None:
        """Raise ValueError where a head on a feature bank cannot start so."""
        if self.head != "random":
            raise ValueError(
                "heads on a feature bank start at random, but `head` is "
                f"{self.head}; set `head: random`"
            )
        if self.lora_rank:
            raise ValueError(
                "`lora_rank` adapts the backbone, whose features a bank keeps as they "
                "are; set `lora_rank: 0`, or `bank_views: 0`"
            )

    def check_form(self, recipe: recipes.Recipe) -> None:
        """Raise ValueError where the model has not what is asked of it.

        It is built on torch's meta device: seconds for the import, no memory.
        """
        import torch

        from sketchlib.training import heads, loop, models

        with torch.device("meta"):
            try:
                model = self.outline(2)
                fixed = loop.has_fixed_size(model)
                if fixed:
                    model.eval()(torch.empty(1, 3, self.side_px, self.side_px))
            except AssertionError as error:  # timm's word on sizes
                raise ValueError(
                    f"`side_px` {self.side_px} does not suit {self.model}: {error}; "
                    "use a multiple of its patch, or its own size"
                ) from error
            recipes.check_sides(recipe, self.side_px, fixed)
            if asks_batch_norm(self, recipe) and models.has_batch_norm(model):
                raise ValueError(
                    f"`norm` {recipe.norm} keeps the batch norms of {self.model} as "
                    f"they were pretrained, but `head` is random and bends the "
                    "features at once, so that nothing would be learned; set `norm: "
                    "learn`, or `head: probe`, or `frozen: true`"
                )
            if recipe.frozen:
                heads.freeze_backbone(model, recipe.unfreeze_last)
            if self.head == "transplant":
                heads.find_subset(models.make_model(self.model, -1, "none"))

    def make(self, classes: int) -> "nn.Module":
        """A fresh model with K outputs."""
        from sketchlib.training import models

        if self.stats == "dataset":
            raise ValueError(
                "`stats` dataset should be measured before a model is made, but "
                "was not; call `with_stats` with the pixels"
            )
        model = models.make_model(
            self.model,
            classes,
            self.weights,
            drop_rate=self.drop_rate,
            drop_path_rate=self.drop_path_rate,
            side_px=self.side_px,
            head_layers=self.head_layers,
            head_hidden=self.head_hidden,
            lora_rank=self.lora_rank if classes else 0,
        )
        if "/" in self.stats:
            mean, std = (
                [float(value) for value in part.split(",")]
                for part in self.stats.split("/")
            )
            models.set_stats(model, mean, std)
        return model

    def with_stats(self, pixels: "cache.PixelCache") -> "Network":
        """The same network with `stats: dataset` measured on the readable pictures."""
        if self.stats != "dataset":
            return self
        from sketchlib.training import datasets

        parts = (
            ",".join(f"{value:.6f}" for value in part)
            for part in datasets.measure_stats(pixels)
        )
        return dataclasses.replace(self, stats="/".join(parts))

    def compose(self, model: "nn.Module", blocks: "composites.Blocks") -> None:
        """Give a model of `make` the classifier of these blocks."""
        from sketchlib.training import composites

        composites.compose_classifier(
            model,
            blocks,
            self.head_layers,
            hidden=self.head_hidden,
            drop_rate=self.drop_rate,
        )

    def outline(
        self, classes: int, recipe: recipes.Recipe | None = None
    ) -> "nn.Module":
        """The same model with random weights, to measure speed with.

        What `recipe` keeps frozen is frozen here too: it needs no gradients.
        """
        plain = dataclasses.replace(self, weights="none", stats="model")
        model = plain.make(classes)
        if recipe is not None and recipe.frozen:
            from sketchlib.training import heads

            heads.freeze_backbone(model, recipe.unfreeze_last)
        return model
