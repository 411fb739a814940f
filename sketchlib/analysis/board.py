"""The file that is sent: made, checked against the sample, judged before it is sent.

Limits: one label per picture; the board's metric is taken to be accuracy.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize

from sketchlib import workspace
from sketchlib.analysis import combiners, joining, scores
from sketchlib.data import manifest as manifests
from sketchlib.training.predictions import Predictions


def make_submission(
    test: Predictions,
    sample: pd.DataFrame | None,
    manifest: pd.DataFrame,
    given_labels: Sequence[int],
    columns: manifests.Columns = manifests.COMPETITION,
) -> pd.DataFrame:
    """The sample's columns, ids and order, with the predicted labels.

    Args:
        test: predictions of every test image.
        sample: the sample submission; None: `ID, image_path, target` in test order.
            Without a path column its rows are taken to be in test order.
        manifest: names the test images and the class order.
        given_labels: the user's own label number of each class, by our label.
        columns: names of the path and label columns.
    Raises:
        ValueError: a test image has no prediction, or the sample does not fit.
    """
    targets = _targets(test, manifest, given_labels)
    if sample is None:
        paths = [name.removeprefix("test/") for name in targets.index]
        numbers = range(len(paths))
        sample = pd.DataFrame({"ID": numbers, columns.path: paths, columns.answer: 0})
    elif columns.answer not in sample:
        raise ValueError(
            f"the sample submission should have the column `{columns.answer}`, but has "
            f"{list(sample.columns)}; name it in the parameter `label_column`"
        )
    values = _in_sample_order(targets, sample, columns)
    submission = sample.copy()
    submission[columns.answer] = values.astype(np.int64)
    return submission


def _targets(
    test: Predictions, manifest: pd.DataFrame, given_labels: Sequence[int]
) -> pd.Series:
    """The user's label of each test image, by `image_id`, in test order."""
    classes = manifests.class_names(manifest)
    if len(given_labels) != len(classes):
        raise ValueError(
            f"`given_labels` should have one number for each of {len(classes)} "
            f"classes, but has {len(given_labels)}; read it from the same train.csv"
        )
    aligned = joining.align_classes(test, classes)
    labels = np.asarray(given_labels)[aligned.labels]
    found = pd.Series(labels, index=aligned.image_ids.astype(str))
    wanted = manifests.test_rows(manifest)["image_id"].astype(str)
    missing = wanted[~wanted.isin(found.index)]
    if len(missing) or not len(wanted):
        raise ValueError(
            f"each of {len(wanted)} test images should be predicted, but "
            f"{joining.name_some(missing.to_numpy())} are not; predict test.csv again"
        )
    return found.reindex(wanted)


def _in_sample_order(
    targets: pd.Series, sample: pd.DataFrame, columns: manifests.Columns
) -> np.ndarray:
    if len(sample) != len(targets):
        raise ValueError(
            f"the sample submission should have one row per test image, "
            f"{len(targets)}, but has {len(sample)}; check that it belongs to test.csv"
        )
    if columns.path not in sample:
        return targets.to_numpy()
    paths = sample[columns.path].astype(str)
    cleaned = "test/" + manifests.clean_paths(paths, Path("sample_submission.csv"))
    strange = sorted(set(cleaned) - set(targets.index))
    if strange or cleaned.duplicated().any():
        repeated = paths[cleaned.duplicated()].tolist()
        raise ValueError(
            "the sample submission should name each test image once, but "
            f"{joining.name_some(strange)} are not in test.csv and "
            f"{joining.name_some(repeated)} stand twice"
        )
    return targets.reindex(cleaned).to_numpy()


def check_submission(
    submission: pd.DataFrame,
    sample: pd.DataFrame | None,
    given_labels: Sequence[int],
    columns: manifests.Columns = manifests.COMPETITION,
) -> None:
    """Raise ValueError unless the submission would be accepted and scored.

    Checked: columns and their order, row count, ids and their order, integer labels
    that exist. Values are compared as text, since a CSV is text.
    """
    if sample is not None:
        _check_against(submission, sample, columns.answer)
    elif columns.answer not in submission:
        raise ValueError(
            f"the submission should have the column `{columns.answer}`, but has "
            f"{list(submission.columns)}"
        )
    targets = submission[columns.answer]
    if not pd.api.types.is_integer_dtype(targets):
        raise ValueError(
            f"`{columns.answer}` should hold whole numbers, but is {targets.dtype}; "
            "convert it with astype('int64')"
        )
    strange = ~targets.isin(list(given_labels))
    if strange.any():
        row = int(strange.to_numpy().argmax())
        raise ValueError(
            f"`{columns.answer}` should be a label of train.csv "
            f"({min(given_labels)}-{max(given_labels)}), but row {row} has "
            f"{targets.iloc[row]} ({int(strange.sum())} such rows)"
        )


def _check_against(submission: pd.DataFrame, sample: pd.DataFrame, label: str) -> None:
    """Raise ValueError unless columns, rows and ids are the sample's."""
    if list(submission.columns) != list(sample.columns):
        raise ValueError(
            f"the submission should have the columns {list(sample.columns)} in this "
            f"order, but has {list(submission.columns)}"
        )
    if len(submission) != len(sample):
        raise ValueError(
            f"the submission should have {len(sample)} rows as the sample, but has "
            f"{len(submission)}; predict every picture of test.csv once"
        )
    for column in sample.columns.drop(label):
        given = submission[column].astype(str).to_numpy(str)
        wanted = sample[column].astype(str).to_numpy(str)
        differs = given != wanted
        if differs.any():
            row = int(differs.argmax())
            raise ValueError(
                f"`{column}` should be as in the sample, row by row, but row {row} has "
                f"{given[row]!r} where {wanted[row]!r} belongs ({int(differs.sum())} "
                "such rows); join by image path, not by position"
            )


def write_submission(
    path: Path,
    submission: pd.DataFrame,
    *,
    sample: pd.DataFrame | None,
    given_labels: Sequence[int],
    columns: manifests.Columns = manifests.COMPETITION,
) -> Path:
    """Check the submission, then write it whole or not at all.

    Paths that begin with `=`, `+`, `-` or `@` are written as they are, although a
    spreadsheet would read them as formulas: the board compares them as text.
    """
    check_submission(submission, sample, given_labels, columns)
    with workspace.atomic_path(path) as temporary:
        submission.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")
    return path


# --- before it is sent ------------------------------------------------------


def expect_score(
    oof: Predictions,
    manifest: pd.DataFrame,
    groups: pd.DataFrame | None = None,
    *,
    copied: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """What a leaderboard may show, with 95 % intervals.

    The interval holds both the choice of training pictures (bootstrap by groups) and
    the draw of the test pictures (binomial). `board-like` counts test pictures that
    are copies of training pictures as known: real boards have them.

    Args:
        oof: of the blend that is sent.
        manifest: names the test pictures.
        groups: `image_id, group`; groups are drawn whole.
        copied: test pictures that are copies of training pictures.
        seed: of the bootstrap.
    Returns:
        Two rows, `honest` and `board-like`: kind, score, low, high (0-1), images.
    """
    images = max(1, len(manifests.test_rows(manifest)))
    summary = scores.summarise(oof, manifest, groups, seed=seed)
    value = summary["accuracy"]
    spread = (summary["accuracy_high"] - summary["accuracy_low"]) / (2 * 1.96)
    share = min(copied / images, 1.0)
    rows = []
    for kind, known in (("honest", 0.0), ("board-like", share)):
        score = known + (1 - known) * value
        unknown = (1 - known) * images
        error = np.hypot((1 - known) * spread, _binomial_error(value, unknown, images))
        low, high = np.clip([score - 1.96 * error, score + 1.96 * error], 0, 1)
        rows.append((kind, score, low, high, images))
    return pd.DataFrame(rows, columns=["kind", "score", "low", "high", "images"])


def _binomial_error(value: float, drawn: float, images: int) -> float:
    """Standard error of the score of `images` of which `drawn` are uncertain."""
    return float(np.sqrt(value * (1 - value) * drawn) / images)


def count_copied(pairs: pd.DataFrame) -> int:
    """Test pictures with a verified copy among the training pictures.

    Args:
        pairs: image_id_a, image_id_b of the audit.
    """
    a, b = pairs["image_id_a"].astype(str), pairs["image_id_b"].astype(str)
    crossing = a.str.startswith("train/") != b.str.startswith("train/")
    tests = np.where(a.str.startswith("test/"), a, b)[crossing.to_numpy()]
    return len(set(tests))


def read_known(path: Path) -> pd.DataFrame:
    """Files that were sent and what they scored, from the user's CSV `file, score`.

    Returns:
        file (path, resolved beside the CSV), score (0-1), slack (half of the last
        digit written).
    Raises:
        FileNotFoundError: the CSV, or a file it names, is not there.
        ValueError: a column is missing or a score is no number in 0-1.
    """
    table = manifests.read_table(path)
    if not {"file", "score"} <= set(table):
        raise ValueError(
            f"{path.name} should have the columns file and score, but has "
            f"{list(table.columns)}"
        )
    values = pd.to_numeric(table["score"], errors="coerce")
    wrong = ~values.between(0, 1)
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise ValueError(
            f"`score` in {path.name} should be 0-1, but row {row} has "
            f"{table['score'].iloc[row]!r}; write 0.934, not 93.4"
        )
    digits = table["score"].str.partition(".")[2].str.len()
    files = [(path.parent / name).resolve() for name in table["file"]]
    for file in files:
        if not file.exists():
            raise FileNotFoundError(
                f"{path.name} names {file.name}, which was expected in {file.parent}; "
                "keep the files that were sent beside it"
            )
    return pd.DataFrame({"file": files, "score": values, "slack": 0.5 * 0.1**digits})


def bound_score(
    answer: pd.DataFrame,
    known: pd.DataFrame,
    columns: manifests.Columns = manifests.COMPETITION,
    *,
    board_share: float,
) -> pd.DataFrame:
    """Between which scores an unsent file must lie, by files whose score is known.

    Pictures fall into kinds by which of the files agree; how many of a kind each
    label may have right is a linear programme whose ends are the bounds.

    Args:
        answer: the unsent submission.
        known: `read_known`; joined by the id or path column, not by position.
        columns: names of the path and label columns.
        board_share: share of the test pictures behind a known score, above 0 to 1;
            under 1 each score gets two standard errors of the rest more slack.
    Returns:
        One row per known file (file, score, agreement, low, high) and last `all`,
        the bounds under all of them together; 0-1.
    Raises:
        ValueError: other pictures, or scores that cannot all be true.
    """
    if not 0 < board_share <= 1:
        raise ValueError(f"`board_share` should be above 0 to 1, not {board_share}")
    own = _labels_of(answer, columns)
    others = [_labels_of(pd.read_csv(file), columns) for file in known["file"]]
    for file, labels in zip(known["file"], others, strict=True):
        if set(labels.index) != set(own.index):
            raise ValueError(
                f"{file.name} should answer the same {len(own)} pictures, but answers "
                f"{len(labels)}, {len(set(labels.index) - set(own.index))} of them "
                "others; keep files of this test set only"
            )
    sheet = np.column_stack([own, *(labels.loc[own.index] for labels in others)])
    values = known["score"].to_numpy(float)
    rest = values * (1 - values) * (1 / board_share - 1) / len(own)
    slack = known["slack"].to_numpy(float) + 2 * np.sqrt(rest)
    rows = []
    for number, file in enumerate(known["file"]):
        part = _solve_bounds(
            sheet[:, [0, number + 1]], values[[number]], slack[[number]]
        )
        agreement = float((sheet[:, 0] == sheet[:, number + 1]).mean())
        rows.append((file.name, values[number], agreement, *part))
    rows.append(("all", np.nan, np.nan, *_solve_bounds(sheet, values, slack)))
    return pd.DataFrame(rows, columns=["file", "score", "agreement", "low", "high"])


def _labels_of(answer: pd.DataFrame, columns: manifests.Columns) -> pd.Series:
    """Label by picture."""
    key = columns.path if columns.path in answer else answer.columns[0]
    return answer.set_index(answer[key].astype(str))[columns.answer].astype(int)


def _solve_bounds(
    sheet: np.ndarray, values: np.ndarray, slack: np.ndarray
) -> tuple[float, float]:
    """Least and greatest score of the first column of labels (N, 1 + F).

    A kind of picture is which columns agree; a variable is how many pictures of a
    kind have the label of one block of agreeing columns.
    """
    kinds = np.array([np.unique(row, return_inverse=True)[1] for row in sheet])
    first = (kinds[:, :, None] == kinds[:, None, :]).argmax(axis=2)  # block's first
    patterns, counts = np.unique(first, axis=0, return_counts=True)
    members, owner = [], []
    for number, pattern in enumerate(patterns):
        for block in np.unique(pattern):
            members.append(pattern == block)
            owner.append(number)
    holds = np.array(members, float).T  # (1 + F, V)
    room = (np.array(owner) == np.arange(len(patterns))[:, None]).astype(float)
    rows, total = holds[1:], len(sheet)
    limits = np.vstack([room, rows, -rows])
    ends = np.concatenate(
        [counts, (values + slack) * total, -np.maximum(values - slack, 0) * total]
    )
    found = [
        optimize.linprog(sign * holds[0], A_ub=limits, b_ub=ends, method="highs")
        for sign in (1, -1)
    ]
    if any(one.status != 0 for one in found):
        raise ValueError(
            "no answer key gives all known files their scores; check the scores, and "
            "that they are of these very files"
        )
    low, high = found[0].fun / total, -found[1].fun / total
    return float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))


def find_disputed(runs: dict[str, Predictions], top: int) -> pd.DataFrame:
    """The pictures whose members disagree most, for a second look.

    Args:
        runs: aligned test predictions by run name.
        top: rows kept.
    Returns:
        image_id, answer (class of the mean), probability (0-1), votes (members for
        it), classes (different answers), margin (0-1, to the second class), then each
        run's class.
    """
    first = next(iter(runs.values()))
    mean = sum(combiners.as_probs(run.logits) for run in runs.values()) / len(runs)
    labels = np.array([run.labels for run in runs.values()])  # (M, N)
    answer = np.asarray(mean).argmax(axis=1)
    best = np.partition(np.asarray(mean), -2, axis=1)[:, -2:]
    ordered = np.sort(labels, axis=0)
    names = np.asarray(first.classes).astype(str)
    table = pd.DataFrame(
        {
            "image_id": first.image_ids.astype(str),
            "answer": names[answer],
            "probability": best[:, 1],
            "votes": (labels == answer).sum(axis=0),
            "classes": 1 + (np.diff(ordered, axis=0) != 0).sum(axis=0),
            "margin": best[:, 1] - best[:, 0],
            **{name: names[labels[row]] for row, name in enumerate(runs)},
        }
    )
    order = ["votes", "margin", "image_id"]
    return table.sort_values(order, ignore_index=True).head(top)
