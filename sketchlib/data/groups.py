"""From verified pairs to groups of copies, keepers, and what they mean for labels.

Two pictures may be joined through a third without being alike themselves; so a
connected component is split until every member has a verified pair with its group's
medoid. The component is kept beside the group, because a fold boundary through it
would still part a verified pair. A flip between two classes (thumb up, thumb down)
joins a group but never a set of interchangeable copies: it is a question for the
reviewer. Nothing is deleted: keepers are a proposal.
"""

from collections import deque

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sketchlib.data import duplicates

POLICIES = {
    "largest": (["pixels", "bytes", "image_id"], [False, False, True]),
    "first": (["row"], [True]),
}
_EXACT = ("bytes", "pixels")
_SAME = (*_EXACT, "near")

Links = dict[int, dict[int, tuple[str, float]]]  # row → row → (kind, score)


def make_groups(
    pairs: pd.DataFrame,
    findings: pd.DataFrame,
    *,
    manifest: pd.DataFrame | None = None,
    policy: str = "largest",
) -> pd.DataFrame:
    """Every picture with its group; a picture without copies is a group of its own.

    Args:
        pairs: `image_id_a, image_id_b, kind, score` of `duplicates.find_pairs`.
        findings: rows of `audit.measure`; all pictures, in manifest order.
        manifest: gives labels; without it, flips between classes count as copies.
        policy: which copy to keep: `largest` (most pixels, then most bytes, then the
            lowest path) or `first` (manifest order).
    Returns:
        One row per picture, in the order of findings: `image_id`; `component` (joined
        by any chain of pairs: folds that keep it whole part no pair); `group` (each
        member paired with the medoid); `copies` (the group without flips between
        classes); `keeper`; `kind` and `score`: how the keeper is turned to give this
        picture, `near` and 1 for itself. Names are a member's lowest image_id.
    Raises:
        ValueError: an unknown policy, or a pair with an unknown picture.
    """
    if policy not in POLICIES:
        raise ValueError(
            f"`policy` must be one of {list(POLICIES)}, but {policy!r} came"
        )
    ids = findings["image_id"].to_numpy()
    links = _as_links(pairs, ids)
    table = pd.DataFrame({"image_id": ids})
    everything = [np.arange(len(ids))]
    components = _parts(everything, links)
    groups = _star_parts(components, links)
    alike = _within_classes(links, _labels(ids, manifest))
    copies = _star_parts(_parts(groups, alike), alike)
    for name, parts in (
        ("component", components),
        ("group", groups),
        ("copies", copies),
    ):
        table[name] = _names(parts, ids)
    rank = _keeper_rank(findings, policy)
    table["keeper"] = rank.groupby(table["copies"]).transform("min") == rank
    table[["kind", "score"]] = _relations(table, alike)
    return table


def _as_links(pairs: pd.DataFrame, ids: np.ndarray) -> Links:
    row_of = pd.Series(np.arange(len(ids)), index=ids)
    links: Links = {}
    unknown = ~pairs[["image_id_a", "image_id_b"]].isin(row_of.index)
    if unknown.to_numpy().any():
        name = pairs[["image_id_a", "image_id_b"]].to_numpy()[unknown.to_numpy()][0]
        raise ValueError(
            f"every pair should name pictures of the findings, but {name!r} is not "
            "among them; take pairs and findings from one audit"
        )
    ends = [row_of.loc[pairs[f"image_id_{end}"]].to_numpy().tolist() for end in "ab"]
    for a, b, kind, score in zip(*ends, pairs["kind"], pairs["score"], strict=True):
        links.setdefault(a, {})[b] = (kind, score)
        links.setdefault(b, {})[a] = (duplicates.inverse_kind(kind), score)
    return links


def _labels(ids: np.ndarray, manifest: pd.DataFrame | None) -> np.ndarray:
    """(N,) labels, -1 where there is none."""
    if manifest is None:
        return np.full(len(ids), -1)
    labels = manifest.drop_duplicates("image_id").set_index("image_id")["label"]
    return labels.reindex(ids).fillna(-1).to_numpy().astype(int)


def _within_classes(links: Links, labels: np.ndarray) -> Links:
    """The links without turns between two different labels."""

    def is_copy(a: int, b: int, kind: str) -> bool:
        known = labels[a] >= 0 and labels[b] >= 0
        return kind in _SAME or not known or labels[a] == labels[b]

    return {
        a: {b: link for b, link in found.items() if is_copy(a, b, link[0])}
        for a, found in links.items()
    }


def _parts(sets: list[np.ndarray], links: Links) -> list[np.ndarray]:
    """Connected parts of each set, over the links inside it."""
    size = sum(len(rows) for rows in sets)
    home = np.empty(size, np.int64)
    for number, rows in enumerate(sets):
        home[rows] = number
    edges = [(a, b) for a, found in links.items() for b in found if home[a] == home[b]]
    ends = np.array(edges, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(ends.shape[1]), tuple(ends)), shape=(size, size))
    _, part = connected_components(graph, directed=False)
    return _split_by(part)


def _split_by(part: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(part, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(part[order])) + 1)


def _star_parts(sets: list[np.ndarray], links: Links) -> list[np.ndarray]:
    """Split sets until each member is linked to its part's medoid, or is a twin."""
    done = []
    for rows in sets:
        if len(rows) == 1:
            done.append(rows)
            continue
        left = set(rows.tolist())
        while left:
            medoid = _medoid(left, links)
            near = {medoid} | (links.get(medoid, {}).keys() & left)
            near |= {twin for row in near for twin in _twins(row, links)} & left
            done.append(np.array(sorted(near)))
            left -= near
    return done


def _twins(row: int, links: Links) -> list[int]:
    """Rows with the same pixels; across classes they may lack a turned link."""
    return [twin for twin, (kind, _) in links.get(row, {}).items() if kind in _EXACT]


def _medoid(rows: set[int], links: Links) -> int:
    """The row with the greatest sum of scores to the others; the first of equals."""

    def likeness(row: int) -> float:
        return sum(s for other, (_, s) in links.get(row, {}).items() if other in rows)

    return max(sorted(rows), key=likeness)


def _names(parts: list[np.ndarray], ids: np.ndarray) -> np.ndarray:
    names = ids.astype(object)
    for rows in parts:
        if len(rows) > 1:
            names[rows] = min(ids[rows])
    return names


def _keeper_rank(findings: pd.DataFrame, policy: str) -> pd.Series:
    """0 for the picture the policy likes best, and so on; index 0..N-1."""
    table = findings[["image_id", "bytes"]].reset_index(drop=True)
    table["pixels"] = (findings["width"] * findings["height"]).to_numpy()
    table["row"] = np.arange(len(table))
    columns, ascending = POLICIES[policy]
    order = table.sort_values(columns, ascending=ascending, kind="stable").index
    return pd.Series(np.arange(len(table)), index=order).sort_index()


def _relations(table: pd.DataFrame, links: Links) -> pd.DataFrame:
    """How each set's keeper is turned to give each member, over the shortest chain."""
    kinds, scores = ["near"] * len(table), [1.0] * len(table)
    sizes = table.groupby("copies")["copies"].transform("size").to_numpy()
    home = table["copies"].to_numpy()
    for keeper in np.flatnonzero(table["keeper"].to_numpy() & (sizes > 1)).tolist():
        seen, queue = {keeper}, deque([keeper])
        while queue:
            at = queue.popleft()
            for other, (kind, score) in links.get(at, {}).items():
                if other in seen or home[other] != home[keeper]:
                    continue
                seen.add(other)
                queue.append(other)
                chained = duplicates.compose_kinds(kinds[at], kind)
                kinds[other] = kind if at == keeper else chained
                scores[other] = min(scores[at], score)
    return pd.DataFrame({"kind": kinds, "score": scores}, index=table.index)


# --- what the groups mean ---------------------------------------------------------


def label_conflicts(groups: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """Labelled pictures of groups that carry two labels or more.

    Returns:
        `group, copies, image_id, label, class_name, kind, score, verdict`: `conflict`
        where interchangeable copies have two labels, `question` where only a flip or
        a quarter turn joins the classes, which may carry the meaning.
    """
    table = _labelled(groups, manifest)
    several = table.groupby("group")["label"].transform("nunique") > 1
    table = table[several].copy()
    mixed = table.groupby("copies")["label"].transform("nunique") > 1
    table["verdict"] = np.where(mixed, "conflict", "question")
    columns = ["group", "copies", "image_id", "label", "class_name", "kind", "score"]
    table = table.sort_values(["group", "label", "image_id"])
    return table[[*columns, "verdict"]].reset_index(drop=True)


def train_test_pairs(groups: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """Test pictures with a training picture in their group: the board's own leak.

    Returns:
        `test_image_id, train_image_id, group, label, class_name`, every such pair.
    """
    columns = ["image_id", "label", "class_name", "subset"]
    table = groups[["image_id", "group"]].merge(manifest[columns], on="image_id")
    test = table.loc[table["subset"] == "test", ["image_id", "group"]]
    train = table[table["subset"] == "train"].drop(columns="subset")
    pairs = test.merge(train, on="group", suffixes=("_test", "_train"))
    pairs = pairs.rename(
        columns={"image_id_test": "test_image_id", "image_id_train": "train_image_id"}
    )
    named = ["test_image_id", "train_image_id", "group", "label", "class_name"]
    return pairs[named].sort_values(named[:2]).reset_index(drop=True)


def distinct_per_class(groups: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """How many different drawings each class has.

    Returns:
        `label, class_name, images, distinct, effective`: `distinct` counts sets of
        copies; `effective` is exp(entropy) of their sizes, from 1 (one drawing makes
        up the class) to `images` (no copies).
    """
    table = _labelled(groups, manifest)
    sizes = table.groupby(["label", "class_name", "copies"], sort=True).size()
    by_class = sizes.groupby(level=["label", "class_name"])
    counts = by_class.agg(images="sum", distinct="size", effective=_effective)
    return counts.reset_index()


def _effective(sizes: pd.Series) -> float:
    share = sizes / sizes.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _labelled(groups: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    train = manifest.loc[manifest["subset"] == "train"]
    return groups.merge(train[["image_id", "label", "class_name"]], on="image_id")
