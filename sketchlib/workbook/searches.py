"""What 06_tune does around a search: its parts from parameters, and its best re-run.

`searching` reads the files that a search is made of. Re-runs are 03_train runs like
any other, with weights and test predictions, in this process.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sketchlib import workspace
from sketchlib.analysis import scores
from sketchlib.training import spaces, trials, tuning
from sketchlib.training.predictions import Predictions
from sketchlib.workbook import parameters, searching, session

PARTS = ("search", "fresh")
_OWN = ("data_dir", "runs_dir", "run_name", "hypothesis", "baseline", "audit_run")


def make_search(here: session.Session, asked: Mapping[str, Any]) -> tuning.Search:
    """The search that the parameters of 06_tune describe.

    Raises:
        FileNotFoundError: a file that is named does not exist.
        ValueError: a name, form or value in one of the files is wrong.
    """
    values = searching.read_base(asked)
    space = searching.read_space(asked["space_file"])
    own = {n: v for n, v in space.shared.items() if n in values}
    names = ["storage", "folds", "objective", "sampler", "pruner", "reduction"]
    names += ["trials", "minutes", "retries", "jobs", "seed"]
    return tuning.Search(
        run_dir=here.run.dir,
        data_dir=here.data_dir,
        columns=asked["columns"],
        folds_file=here.runs_dir / asked["audit_run"] / "folds.csv",
        base=values | own,
        space=spaces.as_plain(space),
        **{name: asked[name] for name in names},
    )


# --- the best, again --------------------------------------------------------


def choose_best(
    found: pd.DataFrame, search: tuning.Search, count: int
) -> dict[str, dict[str, Any]]:
    """`baseline`, `top 1`, `top 2`, …: every parameter of each; empty for 0."""
    best = tuning.rank_trials(found, search, "train").head(count)
    chosen = {
        f"top {place}": tuning.read_values(search, run)
        for place, run in enumerate(best["run"], 1)
    }
    return {"baseline": dict(search.base), **chosen} if chosen else {}


def train_all(
    here: session.Session,
    search: tuning.Search,
    chosen: Mapping[str, Mapping[str, Any]],
    kind: str = "",
) -> dict[str, Predictions]:
    """Train each on all folds, as a run `<search>[-kind]-<name>`; out-of-fold rows."""
    world = tuning.read_world(search)
    folds = int(world.folds["fold"].max()) + 1
    epochs = sum(int(values["epochs"]) for values in chosen.values())
    bar = session.Progress(here, epochs * folds, "epoch")
    made = {}
    for name, values in chosen.items():
        run_name = "-".join(filter(None, [search.name, kind, name.replace(" ", "-")]))
        made[name] = _train_run(world, dict(values) | {"run_name": run_name}, bar)
    return made


def _train_run(
    world: trials.World, values: dict[str, Any], bar: session.Progress
) -> Predictions:
    run = workspace.open_run(
        world.runs_dir, values["run_name"], values, notebook=searching.TRAIN
    )

    def follow(fold: int, row: dict[str, float]) -> None:
        run.log(fold=fold, **row)
        bar.step(
            f"{run.name} · fold {fold + 1} · epoch {row['epoch']} · held-out accuracy "
            f"{row['valid_accuracy']:.3f}"
        )

    oof = trials.run_full(world, values, run, follow)
    run.finish(scores=scores.summarise(oof, world.table, world.folds))
    return oof


# --- how much of it is luck -------------------------------------------------


def split_folds(oof: Predictions, search: tuning.Search) -> dict[str, Predictions]:
    """The rows the search chose by, and those it never saw."""
    parts = {"search": oof.fold < search.folds, "fresh": oof.fold >= search.folds}
    return {
        name: Predictions(
            oof.image_ids[kept], oof.classes, oof.logits[kept], oof.fold[kept]
        )
        for name, kept in parts.items()
        if kept.any()
    }


def score_parts(
    made: Mapping[str, Predictions], search: tuning.Search, table: pd.DataFrame
) -> pd.DataFrame:
    """name, search, fresh (accuracy, 0-1; NaN without such folds), chosen."""
    rows = []
    for name, oof in made.items():
        parts = split_folds(oof, search)
        found = {part: trials.score(rows_, table) for part, rows_ in parts.items()}
        rows.append(
            {"name": name, "chosen": name != "baseline"}
            | {p: found[p]["accuracy"] if p in found else float("nan") for p in PARTS}
        )
    return pd.DataFrame(rows)


def compare_parts(
    made: Mapping[str, Predictions],
    search: tuning.Search,
    table: pd.DataFrame,
    groups: pd.DataFrame,
) -> pd.DataFrame:
    """Gain of each over the baseline on both parts, paired, with 95 % intervals.

    Returns:
        name, part, gain, low, high (-1 to 1), verdict.
    """
    base = split_folds(made["baseline"], search)
    rows = []
    for name, oof in made.items():
        for part, own in split_folds(oof, search).items() if name != "baseline" else ():
            gain = scores.compare(base[part], own, table, groups)
            told = (
                f"{name}, {'folds that chose' if part == 'search' else 'fresh folds'}"
            )
            rows.append((told, part, gain.gain, gain.low, gain.high, gain.verdict))
    return pd.DataFrame(
        rows, columns=["name", "part", "gain", "low", "high", "verdict"]
    )


def describe(found: pd.DataFrame, search: tuning.Search) -> str:
    """What the search did and found, as Markdown."""
    counts = found["state"].value_counts()
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    best = tuning.rank_trials(found, search)
    if best.empty:
        return f"{len(found)} trials ({told}); none but the baseline ran to its end."
    first = best.iloc[0]
    kind = "a fine-tune" if first["kind"] == "train" else "a probe"
    begun = found.loc[found["baseline"] & (found["state"] == "complete"), "score"]
    against = f", the baseline {begun.iloc[0]:.3f}" if len(begun) else ""
    return (
        f"{len(found)} trials ({told}) took {found['seconds'].sum() / 60:.1f} minutes "
        f"of work; pruning saved **{tuning.saved_epochs(found):.0%}** of the epochs. "
        f"The best, `{first['run']}`, is {kind}: {search.objective.replace('_', ' ')} "
        f"**{first['score']:.3f}**{against}, on the folds that also chose it. That "
        "number flatters; the fresh folds below are the judge."
    )


def describe_gains(gains: pd.DataFrame, parts: pd.DataFrame) -> str:
    """The verdict of the fresh folds on the best trial, as Markdown."""
    fresh = gains[gains["part"] == "fresh"]
    if fresh.empty:
        return "No fresh folds judged the best trial: nothing was re-run."
    first = fresh.iloc[0]
    chose = gains.iloc[0]["gain"]
    return (
        f"The best trial against the baseline, on folds the search never saw: "
        f"**{first['verdict']}**, {100 * first['gain']:+.1f} points of accuracy (95 % "
        f"{100 * first['low']:+.1f} to {100 * first['high']:+.1f}). On the folds that "
        f"chose it the gain was {100 * chose:+.1f}; the difference of "
        f"{100 * (chose - first['gain']):+.1f} points is the price of choosing."
    )


def pair_scores(
    small: Mapping[str, Predictions],
    large: Mapping[str, Predictions],
    table: pd.DataFrame,
) -> pd.DataFrame:
    """name, small, large (accuracy on all folds, 0-1), chosen."""
    rows = [
        (
            name,
            trials.score(small[name], table)["accuracy"],
            trials.score(large[name], table)["accuracy"],
            name != "baseline",
        )
        for name in large
    ]
    return pd.DataFrame(rows, columns=["name", "small", "large", "chosen"])


def write_best(
    here: session.Session, found: pd.DataFrame, search: tuning.Search
) -> str:
    """`best.yaml`, the best fine-tune as a file for 03_train; returns its text."""
    import yaml

    best = tuning.rank_trials(found, search, "train")
    if best.empty:
        return "No fine-tuned trial ran to its end: there is no `best.yaml`."
    values = tuning.read_values(search, best["run"].iloc[0])
    schema = parameters.read_parameters(parameters.find_notebook(searching.TRAIN))
    changed = {
        name: value
        for name, value in values.items()
        if name in schema and value != schema[name].default and name not in _OWN
    }
    path = here.run.dir / "best.yaml"
    text = (
        f"# Found by the search {here.run.name}: {search.objective} "
        f"{best['score'].iloc[0]:.4f} on the folds that chose it.\n"
        f"# sketch run {searching.TRAIN} -f {path} -p run_name best\n"
        + yaml.safe_dump(changed, sort_keys=False, allow_unicode=True)
    )
    workspace.write_text(path, text)
    return text
