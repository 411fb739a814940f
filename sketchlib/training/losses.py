"""Losses over soft targets, weighted by picture and class; penalties on weights.

Cross-entropy and BCE are torch's (BCE in timm's form), class weights timm's. Focal:
Lin et al., ICCV 2017, for the softmax. Soft F1: one minus the macro F1 of the batch
with probabilities in place of counts; classes without a picture in the batch are left
out. Limits: single-label targets, or mixtures of them.
"""

from collections.abc import Iterable

import numpy as np
import torch
from timm.loss import BinaryCrossEntropy, compute_class_weights
from torch import nn
from torch.nn import functional

from sketchlib.training.recipe import Recipe

_METHODS = {"inverse": "inv_freq", "effective": "effective_num"}


class Loss:
    """Mean loss of a batch: `loss(logits, targets, weights)`."""

    def __init__(self, recipe: Recipe, class_weights: torch.Tensor) -> None:
        self.name = recipe.loss
        self.smoothing = recipe.label_smoothing
        self.gamma = recipe.focal_gamma
        self.class_weights = class_weights
        self.l1 = recipe.l1
        self.l2 = recipe.l2

    def __call__(
        self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The weighted mean over the batch.

        Args:
            logits: (B, K) float32.
            targets: (B,) class numbers, or (B, K) shares that sum to 1.
            weights: (B,) of the pictures, ≥ 0.
        """
        shares = soften(targets, logits.shape[1], self.smoothing)
        if self.name == "soft_f1":
            return soft_f1(logits, shares, weights, self.class_weights)
        losses = self._losses(logits, shares)
        return (losses * weights).sum() / weights.sum().clamp(min=1e-12)

    def _losses(self, logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """(B,) losses of the pictures, classes weighed in."""
        if self.name == "focal":
            return focal(logits, shares, self.gamma, self.class_weights)
        if self.name == "bce":
            bce = BinaryCrossEntropy(smoothing=0.0, reduction="none")
            return (bce(logits, shares) * self.class_weights).mean(1)
        return functional.cross_entropy(
            logits, shares, weight=self.class_weights, reduction="none"
        )

    def penalty(self, parameters: Iterable[nn.Parameter]) -> torch.Tensor | float:
        """l1 · Σ|w| + l2 / 2 · Σw² over what is trained; 0 without either."""
        total: torch.Tensor | float = 0.0
        if self.l1 or self.l2:
            for weight in parameters:
                if weight.requires_grad:
                    total = total + self.l1 * weight.abs().sum()
                    total = total + self.l2 / 2 * weight.square().sum()
        return total


def soften(targets: torch.Tensor, classes: int, smoothing: float) -> torch.Tensor:
    """(B,) class numbers or (B, K) shares → (B, K) shares, smoothed."""
    if targets.ndim == 1:
        targets = functional.one_hot(targets, classes).float()
    return targets * (1 - smoothing) + smoothing / classes


def focal(
    logits: torch.Tensor,
    shares: torch.Tensor,
    gamma: float,
    class_weights: torch.Tensor,
) -> torch.Tensor:
    """(B,) focal losses: Σ_k y_k w_k (1 - p_k)^γ (-log p_k)."""
    logs = logits.log_softmax(1)
    hard = (1 - logs.exp()).clamp(min=0) ** gamma if gamma else 1.0
    return -(shares * class_weights * hard * logs).sum(1)


def soft_f1(
    logits: torch.Tensor,
    shares: torch.Tensor,
    weights: torch.Tensor,
    class_weights: torch.Tensor,
) -> torch.Tensor:
    """1 - macro F1 of the batch, over the classes that have a picture in it."""
    probs = logits.softmax(1) * weights[:, None]  # (B, K)
    truth = shares * weights[:, None]
    hits = (logits.softmax(1) * truth).sum(0)  # (K,)
    scores = 2 * hits / (probs.sum(0) + truth.sum(0)).clamp(min=1e-8)
    there = (shares.max(0).values >= 0.5) * class_weights
    if not there.any():  # every picture is a mixture
        there = class_weights
    return 1 - (scores * there).sum() / there.sum()


def make_class_weights(labels: np.ndarray, classes: int, kind: str) -> torch.Tensor:
    """(K,) weights with mean 1 over the pictures; ones where `kind` is none."""
    if kind == "none" or not len(labels):
        return torch.ones(classes)
    counts = np.bincount(labels, minlength=classes)
    _, weights = compute_class_weights(counts.tolist(), len(labels), _METHODS[kind])
    return weights * len(labels) / float((weights.numpy() * counts).sum())
