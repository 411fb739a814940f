import numpy as np
import pandas as pd
import pytest

from sketchlib.analysis import standings

NO_GROUPS = pd.Series(dtype=str)


def simulate(rng, gain, *, seeds=3, pictures=300, seed_sd=0.0, folds=3):
    """Heats of `none` and `other`, whose chance of a hit is `gain` higher."""
    rows = []
    for seed in range(seeds):
        shift = gain + seed_sd * rng.normal()
        ease = rng.uniform(0.3, 0.7, pictures)
        for name, chance in (("none", ease), ("other", ease + shift)):
            ids = [f"f{seed % folds}-{number}" for number in range(pictures)]
            hits = rng.random(pictures) < chance
            rows.append(
                pd.DataFrame(
                    {
                        "setting": name,
                        "seed": seed,
                        "fold": seed % folds,
                        "image_id": ids,
                        "hit": hits,
                        "seconds": 1.0,
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)


def gain_of(heats, groups=NO_GROUPS):
    ours, theirs = (heats[heats["setting"] == name] for name in ("other", "none"))
    return standings.measure_gain(ours, theirs, groups)


def test_without_groups_and_seeds_it_is_the_paired_t_interval(rng):
    heats = simulate(rng, 0.1, seeds=1)
    gain = gain_of(heats)
    wide = heats.pivot(index="image_id", columns="setting", values="hit").astype(float)
    difference = wide["other"] - wide["none"]
    assert gain.mean == pytest.approx(difference.mean())
    assert gain.pictures == pytest.approx(difference.var(ddof=0) / (len(wide) - 1))
    assert gain.seeds == 0


def test_copies_count_as_one_drawing(rng):
    heats = simulate(rng, 0.1, seeds=1)
    twice = pd.concat([heats, heats.assign(image_id="copy-" + heats["image_id"])])
    groups = {name: name.removeprefix("copy-") for name in twice["image_id"]}
    alone, copied = gain_of(heats), gain_of(twice, pd.Series(groups))
    assert copied.mean == pytest.approx(alone.mean)
    assert copied.half == pytest.approx(alone.half)
    assert gain_of(twice).half < 0.8 * alone.half


@pytest.mark.parametrize("seed_sd", [0.0, 0.05])
def test_the_interval_holds_the_truth_as_often_as_it_says(seed_sd):
    """95 % of 300 races; seeds that vary need the wider interval."""
    held = 0
    for number in range(300):
        rng = np.random.default_rng(number)
        gain = gain_of(simulate(rng, 0.05, seeds=5, pictures=120, seed_sd=seed_sd))
        held += abs(gain.mean - 0.05) <= gain.half
    assert held / 300 > 0.91


def test_verdicts(rng):
    better = standings.rank_settings(simulate(rng, 0.25), NO_GROUPS, folds=3)
    assert better["verdict"].tolist() == ["better", "baseline"]
    worse = standings.rank_settings(simulate(rng, -0.25), NO_GROUPS, folds=3)
    assert worse["verdict"].tolist() == ["baseline", "worse"]
    same = simulate(rng, 0.0).assign(hit=True)
    table = standings.rank_settings(same, NO_GROUPS, folds=3).set_index("name")
    assert table.loc["none", "verdict"] == "baseline"
    assert table.loc["other", "verdict"] == "cannot tell yet"
    assert table.loc["other", "more_seeds"] == -1


def test_the_baseline_must_run():
    heats = pd.DataFrame({"setting": ["flip"], "hit": [True]})
    with pytest.raises(ValueError, match="needs its baseline 'none'"):
        standings.rank_settings(heats, NO_GROUPS, folds=3)


def test_more_seeds_narrow_the_interval_as_far_as_seeds_can():
    by_seed = standings.Gain(0.02, 1e-6, 3e-4, 500, 3)
    more = standings.count_more_seeds(by_seed, 3)
    assert 0 < more < 47
    runs = 3 + more
    at = standings._half(1e-6, 3e-4 * 3 / runs, 500, runs)
    before = standings._half(1e-6, 3e-4 * 3 / (runs - 1), 500, runs - 1)
    assert at < 0.02 <= before
    by_picture = standings.Gain(0.01, 1e-4, 0.0, 500, 3)
    assert standings.count_more_seeds(by_picture, 3) == -1  # every picture was seen
    assert standings.count_more_seeds(by_picture, 30) > 0  # new ones are to come


def test_only_a_setting_clearly_behind_the_leader_is_stopped(rng):
    heats = pd.concat(
        [
            simulate(rng, 0.2),
            simulate(rng, -0.2).query("setting == 'other'").assign(setting="bad"),
        ]
    )
    names = ["none", "bad", "other", "new"]
    running = standings.still_running(heats, names, NO_GROUPS, after=3)
    assert running == ["none", "other", "new"]
    assert standings.still_running(heats, names, NO_GROUPS, after=4) == names
    assert standings.still_running(heats.iloc[:0], names, NO_GROUPS, after=1) == names


def test_the_words_name_leader_and_open_questions(rng):
    heats = simulate(rng, 0.3)
    text = standings.say_standings(standings.rank_settings(heats, NO_GROUPS, folds=3))
    assert text.startswith("**other** leads") and "**better**" in text
    table = standings.rank_settings(simulate(rng, 0.02), NO_GROUPS, folds=30)
    other = table["name"] == "other"
    table.loc[other, ["verdict", "more_seeds"]] = ["cannot tell yet", 4]
    assert "other; 4 more seeds" in standings.say_standings(table)
    table.loc[other, "more_seeds"] = -1
    assert "on these pictures: other." in standings.say_standings(table)
    shown = standings.style_standings(table).to_html()
    assert "over 50" in shown and "+" in shown
