"""Toy notebooks for the workbook's tests: a title, parameters, and given cells."""

import json
from pathlib import Path

PARAMETERS = """\
data_dir: str = "data"        # the drawings
runs_dir: str = "runs"        # where runs are written
run_name: str = "toy"         # this run's folder
epochs: int = 3               # passes; ≥ 1
lr: float = 1.0e-3            # peak; > 0
flip: bool = True             # mirror half the drawings
recipe: str = "pen"           # augmentation; one of: none, pen, heavy
folds: list[int] = [0, 1]     # which to train
"""
SETUP = """\
from sketchlib import workspace
run = workspace.open_run(runs_dir, run_name, {"epochs": epochs, "lr": lr})"""
FINISH = "run.finish(scores={'oof_accuracy': 0.9, 'oof_low': 0.88, 'oof_high': 0.92})"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def make_cell(name, source, tags=(), kind="code"):
    """One notebook cell as JSON."""
    cell = {"cell_type": kind, "id": name, "metadata": {}, "source": source}
    if tags:
        cell["metadata"]["tags"] = list(tags)
    if kind == "code":
        cell |= {"outputs": [], "execution_count": None}
    return cell


def write_notebook(
    path, cells=(), *, parameters=PARAMETERS, tag="parameters", kernel=1
):
    """Write a notebook: title, parameters, setup, the (id, source) cells, finish."""
    body = [("setup", SETUP), *cells, ("finish", FINISH)]
    named = dict(body)  # a later cell of the same name replaces an earlier one
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": KERNEL} if kernel else {},
        "cells": [
            make_cell("title", "# 99 · Toy", kind="markdown"),
            make_cell("parameters", parameters, [tag] if tag else []),
            *[make_cell(name, source) for name, source in named.items()],
        ],
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def read_cells(path):
    """Cell id → cell of a notebook on disk."""
    return {c["id"]: c for c in json.loads(Path(path).read_text("utf-8"))["cells"]}


def read_text(cell):
    """What a cell printed."""
    return "".join("".join(out.get("text", "")) for out in cell["outputs"])
