"""What composite classes are worth: scores by attribute, and runs of one each joined.

A class such as mask × gender × age is right only if all of it is; the attributes by
themselves say which one is lost. A run that knows one attribute knows no class, but
one run each do together: the product of their probabilities. Rows are joined by
`image_id`. Limits: a product takes the attributes as independent, given the picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from sketchlib.analysis import joining, scores
from sketchlib.data import attributes
from sketchlib.data import manifest as manifests
from sketchlib.data.attributes import Parts
from sketchlib.training.predictions import Predictions

COMBINED = "combined"
_FLOOR = 1e-12


def marginalise(
    predictions: Predictions, parts: Parts, attribute: int, classes: Sequence[str]
) -> Predictions:
    """Predictions of an attribute: the probabilities of its classes, summed.

    Args:
        predictions: over K classes.
        parts: of these classes.
        attribute: place of the attribute in `parts`.
        classes: K names, in the order of `parts`.
    """
    aligned = joining.align_classes(predictions, classes)
    values = parts.values[attribute]
    probs = np.zeros((len(aligned.image_ids), len(values)))
    np.add.at(probs.T, np.asarray(parts.codes[attribute]), aligned.probs.T)
    logits = np.log(np.maximum(probs, _FLOOR)).astype(np.float32)
    return replace(aligned, classes=np.asarray(values), logits=logits)


def label_attribute(
    manifest: pd.DataFrame, parts: Parts, attribute: int
) -> pd.DataFrame:
    """The manifest with an attribute's value as the label of each training row."""
    table = manifest.copy()
    labelled = (table["label"] >= 0).to_numpy()
    codes = np.asarray(parts.codes[attribute])[table.loc[labelled, "label"]]
    values = np.asarray(parts.values[attribute], object)
    table.loc[labelled, "label"] = codes
    table.loc[labelled, "class_name"] = values[codes]
    return table


def score_attributes(
    predictions: Predictions,
    manifest: pd.DataFrame,
    parts: Parts,
    groups: pd.DataFrame | None = None,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy and macro F1 of each attribute, and of the combined class last.

    Args:
        predictions: out-of-fold, over the combined classes.
        manifest: every predicted image must have a label in it.
        parts: what the classes are made of.
        groups: `image_id, group`; drawn whole for the intervals.
        seed: of the bootstrap.
    Returns:
        attribute, values, chance (0-1, accuracy of the most frequent value), accuracy,
        accuracy_low, accuracy_high, macro_f1, macro_f1_low, macro_f1_high (0-1).
    """
    classes = manifests.class_names(manifest)
    rows = []
    for number, name in enumerate(parts.names):
        own = marginalise(predictions, parts, number, classes)
        rows.append((name, own, label_attribute(manifest, parts, number)))
    rows.append((COMBINED, predictions, manifest))
    return pd.DataFrame([_score(*row, groups, seed) for row in rows])


def _score(
    name: str,
    own: Predictions,
    table: pd.DataFrame,
    groups: pd.DataFrame | None,
    seed: int,
) -> dict[str, object]:
    found = scores.summarise(own, table, groups, seed=seed)
    labels = manifests.train_rows(table)["label"]
    chance = float(labels.value_counts(normalize=True).max())
    kept = ("accuracy", "macro_f1")
    told = {
        key: value for key, value in found.items() if key.startswith(kept)
    }  # each with its interval
    return {"attribute": name, "values": len(own.classes), "chance": chance} | told


def score_runs(
    runs: Mapping[str, Predictions],
    manifest: pd.DataFrame,
    parts: Parts,
    groups: pd.DataFrame | None = None,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Macro F1 of every run by attribute, and of the combined class with an interval.

    Args:
        runs: out-of-fold predictions by name.
        manifest: every predicted image must have a label in it.
        parts: what the classes are made of.
        groups: `image_id, group`; drawn whole for the intervals.
        seed: of the bootstrap.
    Returns:
        run, a column for each attribute (macro F1, 0-1), combined, low, high (macro
        F1 of the class, 95 %), accuracy (of the class), best combined first.
    """
    rows = []
    for name, run in runs.items():
        table = score_attributes(run, manifest, parts, groups, seed=seed)
        whole = table.iloc[-1]
        rows.append(
            {"run": name}
            | dict(zip(table["attribute"], table["macro_f1"], strict=True))
            | {"low": whole["macro_f1_low"], "high": whole["macro_f1_high"]}
            | {"accuracy": whole["accuracy"]}
        )
    made = pd.DataFrame(rows)
    return made.sort_values(COMBINED, ascending=False, ignore_index=True)


def tell(table: pd.DataFrame, parts: Parts) -> str:
    """The table of `score_attributes` in words: what is crossed, and what is lost."""
    alone = table[table["attribute"] != COMBINED]
    worst = alone.loc[alone["accuracy"].idxmin()]
    whole = table[table["attribute"] == COMBINED].iloc[0]
    product = float(alone["accuracy"].prod())
    return (
        f"{'; '.join(attributes.describe(parts))}. Lost most often: "
        f"**{worst['attribute']}**, right for {worst['accuracy']:.1%} (its most "
        f"frequent value: {worst['chance']:.1%}), macro F1 {worst['macro_f1']:.1%}. "
        f"All of a class is right for {whole['accuracy']:.1%}, macro F1 "
        f"{whole['macro_f1']:.1%}; {product:.1%} were to be expected if the attributes "
        "erred on drawings of their own."
    )


def name_attribute(columns: Sequence[str], run: str) -> str:
    """The attribute a run was trained on, from the `columns` it was asked with.

    Raises:
        ValueError: its label is not made of a single column.
    """
    made = manifests.make_columns(list(columns)).made_of
    if len(made) != 1:
        raise ValueError(
            f"`attribute_runs` should be runs of one attribute each, trained with "
            f"`columns: [image_path, +NAME]`, but {run!r} has {list(columns)}"
        )
    return made[0]


def multiply(
    runs: Mapping[str, Predictions], parts: Parts, classes: Sequence[str]
) -> Predictions:
    """One run for each attribute as predictions of the combined classes.

    log p(class) = Σ log p(value), over the classes there are, made to sum to 1.

    Args:
        runs: predictions by attribute; the same images in the same folds.
        parts: what the K classes are made of.
        classes: K names, in the order of `parts`.
    Raises:
        ValueError: an attribute has no run or an unknown one, or the runs differ in
            images, folds or values.
    """
    odd = sorted(set(runs) ^ set(parts.names))
    if odd:
        raise ValueError(
            f"there should be a run for each of {', '.join(parts.names)}, but "
            f"{', '.join(runs)} came; {odd[0]!r} is on one side only"
        )
    attributes.check_distinct(parts, classes)
    joining.check_same_images(dict(runs))
    first = runs[parts.names[0]]
    ordered = {
        name: joining.take_images(runs[name], first.image_ids) for name in parts.names
    }
    joining.check_same_folds(ordered)
    total = np.zeros((len(first.image_ids), len(classes)))
    for number, (name, run) in enumerate(ordered.items()):
        _check_values(name, run, parts.values[number])
        aligned = joining.align_classes(run, parts.values[number])
        logs = np.log(np.maximum(aligned.probs, _FLOOR))
        total += logs[:, np.asarray(parts.codes[number])]
    total -= total.max(axis=1, keepdims=True)
    total -= np.log(np.exp(total).sum(axis=1, keepdims=True))
    logits = np.maximum(total, -50.0).astype(np.float32)
    return Predictions(first.image_ids, np.asarray(classes), logits, first.fold)


def _check_values(name: str, run: Predictions, values: Sequence[str]) -> None:
    odd = sorted(set(map(str, run.classes)) ^ set(values))
    if odd:
        raise ValueError(
            f"the run of `{name}` should know its values {', '.join(values)}, but "
            f"knows {', '.join(map(str, run.classes))}; train it on the same train.csv"
        )
