"""What a trained fold leaves in its folder, and what is made of all folds together.

History and predictions travel: a run copied without weights can be scored and
blended. Weights are safetensors, of the whole network or, on a feature bank, of its
head. Limits: what a folder was trained for is `folds`' business.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from safetensors.torch import save_file
from torch import nn

from sketchlib import workspace
from sketchlib.training import composites, heads, models, predictions
from sketchlib.training.network import Network


@dataclass(frozen=True)
class Result:
    """A finished fold: its history (one row an epoch) and predictions."""

    history: pd.DataFrame
    oof: predictions.Predictions
    test: predictions.Predictions


def write_result(result: Result, model: nn.Module, fold_dir: Path) -> None:
    """Write history, predictions and weights of a finished fold."""
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    with workspace.atomic_path(fold_dir / "model.safetensors") as temporary:
        save_file(tensors, temporary)
    _write_tables(result, fold_dir)


def write_head(result: Result, head: nn.Module, fold_dir: Path) -> None:
    """The same of a fold whose backbone is as it was pretrained."""
    _write_tables(result, fold_dir)
    with workspace.atomic_path(fold_dir / "head.safetensors") as temporary:
        save_file(dict(head.state_dict()), temporary)


def _write_tables(result: Result, fold_dir: Path) -> None:
    with workspace.atomic_path(fold_dir / "history.csv") as temporary:
        result.history.to_csv(temporary, index=False)
    predictions.write_predictions(fold_dir / "oof.npz", result.oof)
    predictions.write_predictions(fold_dir / "test.npz", result.test)


def read_result(fold_dir: Path) -> Result:
    """What `write_result` or `write_head` wrote, without the weights."""
    return Result(
        pd.read_csv(fold_dir / "history.csv"),
        predictions.read_predictions(fold_dir / "oof.npz"),
        predictions.read_predictions(fold_dir / "test.npz"),
    )


def join_results(
    results: Mapping[int, Result], run_dir: Path
) -> tuple[predictions.Predictions, predictions.Predictions]:
    """Out-of-fold rows of all folds, and what is predicted for the test pictures.

    That is the word of the model of all rows (fold -1) where there is one, else the
    folds' soft vote. Both are written to `run_dir` as `oof.npz` and `test.npz`.
    """
    held = [result for fold, result in results.items() if fold >= 0]
    oof = predictions.concatenate([result.oof for result in held])
    final = results.get(-1)
    test = final.test if final else predictions.average([r.test for r in held])
    predictions.write_predictions(run_dir / "oof.npz", oof)
    predictions.write_predictions(run_dir / "test.npz", test)
    return oof, test


def join_histories(results: Mapping[int, Result], run_dir: Path) -> pd.DataFrame:
    """All histories below each other, with the column `fold`.

    `metrics.jsonl` in `run_dir` is written anew from them: a run that was killed
    between two epochs may have logged one twice, or not at all.
    """
    joined = pd.concat(
        [result.history.assign(fold=fold) for fold, result in results.items()],
        ignore_index=True,
    )
    lines = [json.dumps(row) for row in joined.to_dict("records")]
    workspace.write_text(run_dir / "metrics.jsonl", "\n".join(lines) + "\n")
    return joined


def load_model(run_dir: Path, fold: int, network: Network, classes: int) -> nn.Module:
    """The trained model of a fold, in eval mode.

    Raises:
        FileNotFoundError: the run folder holds no weights of that fold.
    """
    path = run_dir / f"fold{fold}" / "model.safetensors"
    head = path.with_name("head.safetensors")
    if head.exists() and not path.exists():
        return _join_head(network, head, classes).eval()
    if not path.exists():
        raise FileNotFoundError(
            f"`model.safetensors` was expected in {path.parent}; run folders copied "
            "without weights can be blended, but not looked into"
        )
    saved = dataclasses.replace(network, weights=str(path), lora_rank=0)
    if blocks := composites.read_blocks(path):
        model = dataclasses.replace(saved, weights="none").make(classes)
        saved.compose(model, blocks)
        model.load_state_dict(models.read_weights(path))
        return model.eval()
    return saved.make(classes).eval()


def _join_head(network: Network, path: Path, classes: int) -> nn.Module:
    """The pretrained backbone under a head that was trained on its features.

    Raises:
        ValueError: the head takes the features of several backbones.
    """
    model = network.make(classes)
    if blocks := composites.read_blocks(path):
        network.compose(model, blocks)
    classifier = model.get_submodule(heads.classifier_name(model))
    given, wanted = models.read_weights(path), classifier.state_dict()
    wrong = [key for key in wanted if models.differs(wanted[key], given, key)]
    if wrong:
        raise ValueError(
            f"{path} should fit the classifier of {network.model}, but {wrong[0]} is "
            f"{list(wanted[wrong[0]].shape)} there; a head on joined banks can be "
            "blended, but not looked into"
        )
    classifier.load_state_dict(given)
    return model
