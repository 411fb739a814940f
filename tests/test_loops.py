"""The compiled loops against the same measures written with numpy."""

import numpy as np
import pytest

from sketchlib.data import cache, loops, measures


def ring_level(grey, inset, wide):
    part = grey[inset : grey.shape[0] - inset, inset : grey.shape[1] - inset]
    ring = np.concatenate(
        [part[:wide], part[-wide:], part[:, :wide], part[:, -wide:]], axis=None
    )
    return int(np.sort(ring)[(ring.size - 1) // 2])


def paper_level(grey, wide):
    outer = ring_level(grey, 0, wide)
    if min(grey.shape) <= 6 * wide:
        return outer
    inner = ring_level(grey, 3 * wide, wide)
    near = [(np.abs(grey.astype(int) - level) <= 20).sum() for level in (outer, inner)]
    if near[0] > grey.size / 2 or abs(outer - inner) <= 40:
        return outer
    return outer if near[0] >= near[1] else inner


def look(grey, finer, ring, edge, tall):
    paper = paper_level(grey, ring)
    depth = np.abs(grey.astype(int) - paper)
    enough = min(max(8, grey.size // 1000), grey.size)
    contrast = int(np.sort(depth, axis=None)[-enough])
    step = int(max(20, 0.3 * contrast))
    ink = depth > step
    box = [span(ink.sum(axis=0)), span(ink.sum(axis=1))]
    lines = ink[:edge], ink[-edge:], ink[:, :edge].T, ink[:, -edge:].T
    border = min(line.mean(axis=1).max() for line in lines)
    if not ink[:edge, grey.shape[1] // 2].any():
        border = 0.0
    drawn = np.abs(finer.astype(int) - paper) > step
    rises = (drawn[:, 1:] & ~drawn[:, :-1]).sum(axis=1)
    text = 0
    for part in (rises[:tall], rises[len(rises) - tall :]):
        fours = [part[at : at + 4].min() for at in range(len(part) - 3)]
        text = max([text, *fours])
    (left, right), (top, bottom) = box
    return (paper, contrast, grey.mean(), ink.mean(), left, top, right, bottom) + (
        border,
        text,
    )


def span(sums):
    if sums.sum() == 0:
        return 0.0, 1.0
    part = sums.cumsum()
    speck = 0.002 * part[-1]
    first = np.flatnonzero(part > speck)[0]
    last = np.flatnonzero(part >= part[-1] - speck)[0]
    return first / len(sums), min(last + 1, len(sums)) / len(sums)


def draw(seed):
    """A drawing of any size and ground: lines, a frame or a rim, lettering, grain."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(2, 260, 2)
    paper, ink = (250, 30) if rng.random() < 0.7 else (15, 220)
    grey = np.full((height, width), paper, np.uint8)
    for _ in range(rng.integers(0, 9)):
        y, x = rng.integers(0, height), rng.integers(0, width)
        grey[y : y + rng.integers(1, 4)] = ink
        grey[:, x : x + rng.integers(1, 4)] = ink
    if rng.random() < 0.3:
        rim = int(rng.integers(1, 9))
        grey[:rim], grey[-rim:], grey[:, :rim], grey[:, -rim:] = (128,) * 4
    if rng.random() < 0.3:
        grey[-height // 8 :, ::5] = ink
    grain = rng.integers(-6, 7, grey.shape)
    return np.clip(grey.astype(int) + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(60))
def test_what_is_measured_is_what_numpy_measures(seed):
    finer = draw(seed)
    grey = np.ascontiguousarray(finer[::2, ::2]) if seed % 2 else finer
    tall = round(0.18 * len(finer)) if len(finer) >= 32 else 0
    ring, edge = (max(1, round(part * min(grey.shape))) for part in (0.03, 0.06))
    found = loops.look(grey, finer, ring, edge, tall)
    wanted = look(grey, finer, ring, edge, tall)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("paper", cache.PAPERS)
@pytest.mark.parametrize("seed", range(20))
def test_a_drawing_is_found_where_numpy_finds_it(seed, paper):
    grey = draw(seed)
    ring = max(1, min(grey.shape) // 50)
    level, *box = loops.find_drawing(grey, ring, cache._list_papers(paper))
    assert level == ring_level(grey, 0, ring)
    table, ground, least, most = cache._make_tones(level, paper)
    ink = np.abs(table[grey].astype(int) - ground) > cache._INK_STEP
    assert (ink == ((grey < least) | (grey > most))).all()
    sides = [np.flatnonzero(ink.sum(axis=axis) >= 2) for axis in (1, 0)]
    if min(map(len, sides)) == 0:
        assert box == [0, grey.shape[0], 0, grey.shape[1]]
    else:
        assert box == [end for side in sides for end in (side[0], side[-1] + 1)]


def test_parts_and_locked_pictures_are_copied_first():
    grey = draw(1)
    part = grey[1:, 1:]
    locked = grey.copy()
    locked.flags.writeable = False
    for picture in (part, locked):
        ready = loops.whole_rows(picture)
        assert ready.flags.c_contiguous and ready.flags.writeable
        assert (ready == picture).all()
        wide = max(1, min(picture.shape) // 50)
        assert cache.ground_level(picture) == ring_level(picture, 0, wide)
    assert loops.whole_rows(grey) is grey


def test_the_least_ink_is_the_same_everywhere():
    assert loops._MIN_INK == measures._MIN_INK


def test_without_a_folder_to_keep_it_in_a_loop_is_compiled(monkeypatch):
    compile_now = loops.njit

    def refuse(signature, *, cache=False):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_now(signature)

    monkeypatch.setattr(loops, "njit", refuse)
    doubled = loops._compiled("i8(i8)")(lambda value: 2 * value)
    assert doubled(21) == 42
