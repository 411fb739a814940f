"""The command `sketch`: every door of the workbook.

Only the standard library is imported before a command is known, so that
`sketch --help` answers at once. A ValueError or FileNotFoundError of ours is the
user's to mend: one sentence on standard error and exit code 2.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_EPILOG = """\
exit codes: 0 done, 1 notebook error, 2 bad input, 124 time-out,
130 interrupted, 137 killed
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        if notebook := _asked_help(given):
            return _show_parameters(notebook)
        options = _make_parser().parse_args(given)
        options.given = given
        return int(options.command(options))
    except (ValueError, FileNotFoundError) as error:
        print(f"sketch: {_as_sentence(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `sketch models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"sketch: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _asked_help(given: Sequence[str]) -> str:
    """The notebook of `sketch run NOTEBOOK --help`; empty for any other command."""
    is_help = given[:1] == ["run"] and bool({"-h", "--help"} & set(given))
    if not is_help or given[1].startswith("-"):
        return ""
    return given[1]


def _as_sentence(error: Exception) -> str:
    """The message; a foreign FileNotFoundError gets its file named."""
    named = getattr(error, "filename", None)
    return f"there is no file `{named}`" if named else str(error)


# --- the parser -------------------------------------------------------------


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sketch",
        description="Sketchbook: notebooks as programs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_run(commands)
    _add_workbook(commands)
    _add_looks(commands)
    _add_review(commands)
    _add_doctor(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="write the demo drawings")
    demo.add_argument("dir", nargs="?", default="", help="default: data/demo")
    demo.add_argument("--seed", type=int, default=0, help="default: 0")
    demo.add_argument(
        "--attributes", action="store_true",
        help="classes of subject × ground × line; default: data/demo-attributes",
    )  # fmt: skip
    demo.set_defaults(command=_write_demo)


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run one notebook",
        description="Run one notebook, its parameters checked before it starts.",
        epilog="`sketch run NOTEBOOK --help` prints that notebook's parameters.",
    )
    run.add_argument("notebook", help="a path, or a name such as 03_train or train")
    run.add_argument(
        "-f", dest="files", action="append", default=[], metavar="YAML",
        help="a file of parameters; later ones win",
    )  # fmt: skip
    _add_parameters(run)
    run.add_argument(
        "--timeout", type=float, default=0.0, metavar="S", help="seconds, 0 for none"
    )
    _add_detach(run)
    run.set_defaults(command=_run)


def _add_workbook(commands: Any) -> None:
    workbook = commands.add_parser(
        "workbook", help="run a plan: what is missing or stale, in order"
    )
    workbook.add_argument("plan", help="a path, or a name in params/workbooks")
    _add_parameters(workbook)
    workbook.add_argument(
        "--dry-run", action="store_true", help="say what would run, and why"
    )
    workbook.add_argument(
        "--force", action="append", default=[], metavar="STEP", help="run it anyway"
    )
    place = workbook.add_mutually_exclusive_group()
    place.add_argument(
        "--jobs", type=int, metavar="N", help="independent steps at a time"
    )
    place.add_argument(
        "--ray", default="", metavar="ADDRESS",
        help="run steps on a Ray cluster; `local` starts one here",
    )  # fmt: skip
    _add_detach(workbook)
    workbook.set_defaults(command=_run_workbook)


def _add_parameters(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-p", dest="pairs", action="append", nargs=2, default=[],
        metavar=("NAME", "VALUE"), help="one parameter, over every file",
    )  # fmt: skip
    command.add_argument(
        "--runs", default="", metavar="DIR", help="where runs are written"
    )


def _add_detach(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--detach",
        action="store_true",
        help="go on when this terminal is closed; `sketch runs --watch` follows",
    )


def _add_looks(commands: Any) -> None:
    runs = commands.add_parser("runs", help="state, progress and score of every run")
    runs.add_argument("--runs", default="", metavar="DIR")
    runs.add_argument("--watch", action="store_true", help="again every two seconds")
    runs.set_defaults(command=_show_runs)
    report = commands.add_parser("report", help="write the HTML of runs, and the index")
    report.add_argument("run", nargs="?", default="", help="a run's name; default: all")
    report.add_argument("--runs", default="", metavar="DIR")
    report.set_defaults(command=_write_reports)
    export = commands.add_parser("export", help="copy finished runs elsewhere")
    kinds = ("csv", "jsonl", "mlflow", "wandb", "tensorboard", "trackio")
    export.add_argument("kind", choices=kinds)
    export.add_argument("--runs", default="", metavar="DIR")
    export.add_argument(
        "--out", default="", metavar="FILE", help="of csv and jsonl; default: runs.csv"
    )
    export.set_defaults(command=_export)
    again = commands.add_parser(
        "reproduce", help="run a finished 03_train run again, and compare"
    )
    again.add_argument("run", help="a run's name")
    again.add_argument("--runs", default="", metavar="DIR")
    again.add_argument("--keep", action="store_true", help="leave the second run")
    again.set_defaults(command=_reproduce)
    models = commands.add_parser("models", help="the models there are, and why")
    models.set_defaults(command=_show_models)


def _add_review(commands: Any) -> None:
    review = commands.add_parser(
        "review",
        help="doubtful pictures: list them, decide",
        description="What an audit is unsure of, and your verdicts on it. With keys "
        "and pictures: open 01_eda in JupyterLab (`make lab`) and run it.",
    )
    review.add_argument("run", nargs="?", default="audit", help="default: audit")
    review.add_argument("--runs", default="", metavar="DIR")
    review.add_argument(
        "--decide", nargs=2, metavar=("ID", "ACTION"),
        help="keep, drop, not_duplicate, relabel or undo",
    )  # fmt: skip
    review.add_argument(
        "--new", default="", metavar="VALUE",
        help="the class of a relabel, the other picture of a pair",
    )  # fmt: skip
    review.add_argument("--shown", type=int, default=20, help="default: 20")
    review.set_defaults(command=_review)


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="is this machine ready, is the data?")
    doctor.add_argument("--data", default="", metavar="DIR", help="check this data too")
    doctor.add_argument(
        "--plan", default="", metavar="PLAN", help="say how long this plan may take"
    )
    doctor.set_defaults(command=_examine)


# --- commands ---------------------------------------------------------------


def _write_demo(options: argparse.Namespace) -> int:
    from sketchlib import workspace
    from sketchlib.data import demo, demo_attributes

    name = "demo-attributes" if options.attributes else "demo"
    default = workspace.repo_root() / "data" / name
    folder = Path(os.path.abspath(options.dir)) if options.dir else default
    if options.attributes:
        print(demo_attributes.write_demo(folder, seed=options.seed))
        return 0
    truth = folder.with_name(folder.name + "-truth")
    demo.write_demo(folder, truth, seed=options.seed)
    print(folder)
    return 0


def _run(options: argparse.Namespace) -> int:
    from sketchlib.workbook import jobs, parameters, report, runner

    if options.timeout < 0:
        raise ValueError(
            f"--timeout must be seconds, 0 for none, not {options.timeout:g}"
        )
    notebook = parameters.find_notebook(options.notebook)
    asked = jobs.collect_overrides(notebook, options.files, options.pairs, options.runs)
    job = jobs.make_job(notebook, asked, timeout=options.timeout)
    if options.detach:
        from sketchlib.workbook import detach

        return detach.start(options.given, job.folder)
    outcome = runner.run_notebook(job)
    report.write_index(job.folder.parent)
    if outcome.message:
        print(f"sketch: {outcome.message}", file=sys.stderr)
    print(job.target.with_suffix(".html"))
    return outcome.exit_code


def _run_workbook(options: argparse.Namespace) -> int:
    from sketchlib.workbook import plan, schedule

    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, not {options.jobs}")
    path = plan.find_plan(options.plan)
    chosen = plan.read_plan(path, options.pairs, options.runs, options.jobs)
    if options.dry_run:
        schedule.forecast(chosen, forced=options.force)
        return 0
    if options.detach:
        from sketchlib.workbook import detach

        schedule.check_plan(chosen, options.force)
        return detach.start(options.given, chosen.runs_dir / path.stem)
    if not options.ray:
        place = schedule.Here(chosen.jobs, chosen.count_beside())
        return schedule.run_plan(chosen, place, forced=options.force)
    from sketchlib.workbook import cluster

    with cluster.connect(options.ray) as nodes:
        return schedule.run_plan(chosen, nodes, forced=options.force)


def _show_parameters(named: str) -> int:
    from sketchlib.workbook import parameters

    notebook = parameters.find_notebook(named)
    print(f"usage: sketch run {named} [-f YAML] [-p NAME VALUE] [--runs DIR]")
    print(f"\nparameters of {notebook.name}:")
    print(parameters.describe(parameters.read_parameters(notebook)))
    return 0


def _find_runs_dir(given: str) -> Path:
    from sketchlib import workspace

    folder = Path(os.path.abspath(given)) if given else workspace.repo_root() / "runs"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder of runs `{folder}`; start one with `sketch run`, or "
            "name it with `--runs DIR`"
        )
    return folder


def _show_runs(options: argparse.Namespace) -> int:
    folder = _find_runs_dir(options.runs)
    while True:
        table = _format_runs(folder)
        print("\x1b[H\x1b[2J" * bool(options.watch) + table, flush=True)
        if not options.watch:
            return 0
        time.sleep(2)


def _format_runs(folder: Path) -> str:
    from sketchlib.workbook import display, folders, report

    rows = [("run", "state", "score", "time", "progress")]
    for path, record in report.read_runs(folder):
        state = folders.read_state(record)
        progress = display.read_progress(path) if state == "running" else {}
        seconds = record.get("seconds")
        took = display.format_seconds(seconds) if seconds is not None else ""
        score = report.format_score(record)[0]
        rows.append((path.name, state, score, took, display.format_progress(progress)))
    return _align(rows)


def _align(rows: Sequence[Sequence[str]]) -> str:
    wide = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{text:<{width}}" for text, width in zip(row, wide, strict=True))
        .rstrip()
        for row in rows
    )  # fmt: skip


def _write_reports(options: argparse.Namespace) -> int:
    from sketchlib.workbook import parameters, report

    folder = _find_runs_dir(options.runs)
    known = [path.name for path, _ in report.read_runs(folder)]
    if options.run and options.run not in known:
        near = parameters.suggest(options.run, known)
        raise ValueError(f"no run is called `{options.run}` in {folder}{near}")
    for name in [options.run] if options.run else known:
        if list((folder / name).glob("*.ipynb")):
            print(report.write_report(folder / name))
    print(report.write_index(folder))
    return 0


def _review(options: argparse.Namespace) -> int:
    from sketchlib import workspace
    from sketchlib.data import decisions, manifest
    from sketchlib.workbook import review

    folder = _find_runs_dir(options.runs) / options.run
    if not (folder / "run.json").exists():
        raise FileNotFoundError(
            f"no run is called `{options.run}` in {folder.parent}; run 01_eda first"
        )
    asked = workspace.read_json(folder / "run.json")["parameters"]
    data_dir = workspace.resolve_path(asked["data_dir"])
    columns = manifest.make_columns(asked.get("columns", []))
    verdicts = decisions.read_decisions(decisions.find_path(data_dir))
    rows = decisions.overlay(manifest.read_manifest(data_dir, columns), verdicts)
    desk = review.open_desk(folder, data_dir, rows)
    if options.decide:
        image_id, action = options.decide
        made = desk.record(image_id, action, options.new)
        print(f"{made.action} {made.id} {made.new}".rstrip())
    _print_desk(desk, options.shown)
    return 0


def _print_desk(desk: Any, shown: int) -> None:
    """Notices, the first open questions, progress, and where verdicts are kept."""
    from sketchlib.workbook import review

    for notice in desk.verdicts.notices:
        print(f"notice: {notice}")
    rows = [
        (review.describe(item), *item.image_ids, *("",) * (2 - len(item.image_ids)))
        for item in desk.open_items[:shown]
    ]
    if rows:
        print(_align(rows))
    print(f"{desk.progress}; verdicts: {desk.path}")
    print("with pictures and keys: `make lab`, then run 01_eda")


def _export(options: argparse.Namespace) -> int:
    from sketchlib.workbook import report, trackers

    folder = _find_runs_dir(options.runs)
    out = options.out or folder / f"runs.{options.kind}"
    done = [run for run in report.read_runs(folder) if run[1].get("state") == "done"]
    print(trackers.export_runs(done, options.kind, Path(os.path.abspath(out))))
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    """Exit code 0 when equal or within noise, 1 when different or failed."""
    from sketchlib.workbook import reproduce

    folder = _find_runs_dir(options.runs)
    try:
        found = reproduce.reproduce(folder / options.run, keep=options.keep)
    except RuntimeError as error:
        print(f"sketch: {error}", file=sys.stderr)
        return 1
    print(f"{options.run}: {found.text}")
    return int(found.verdict == reproduce.DIFFERENT)


def _show_models(options: argparse.Namespace) -> int:
    from sketchlib.training import catalogue

    print(catalogue.read_catalogue().to_string(index=False, na_rep=""))
    return 0


def _examine(options: argparse.Namespace) -> int:
    from sketchlib.workbook import doctor

    return doctor.examine(options.data, options.plan)


if __name__ == "__main__":
    sys.exit(main())
