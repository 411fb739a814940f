import cv2
import numpy as np
import pytest
from conftest import CLASSES, draw_shape
from torch.utils.data import DataLoader

from sketchlib.data import cache
from sketchlib.training import datasets, recipes, steps, transforms

SHAPES = [(1, 1), (2, 3), (1, 5000), (5000, 1), (37, 64), (128, 128)]
PAPER_CHANGES = {"brightness", "invert", "noise", "auto_augment", "rand_augment"}
PAPER_CHANGES |= {"lettering", "watermark"}  # what they add is meant to be seen


@pytest.fixture
def drawing(rng):
    return draw_shape("square", rng)


def draw(name, pixels, epoch=0, row=0, seed=0):
    return transforms.draw(transforms.make_recipe(name), pixels, seed, epoch, row)


def always(lines):
    return transforms.Pipeline(recipes.parse_steps(lines, "test"))


def step_of(name, strength="mid"):
    dials = steps.KINDS[name].dials
    args = {key: getattr(dial, strength) for key, dial in dials.items()}
    return always([{name: {**args, "p": 1}}])


def in_colour(pixels):
    return np.dstack([pixels] * 3)


@pytest.mark.parametrize("strength", ["low", "mid", "high"])
@pytest.mark.parametrize("name", steps.KINDS)
class TestEveryStep:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_shape_and_type_stay(self, name, strength, shape, channels, rng):
        pixels = rng.integers(0, 256, shape, np.uint8)
        pixels = in_colour(pixels) if channels == 3 else pixels
        before = pixels.copy()
        for epoch in range(3):
            made = transforms.draw(step_of(name, strength), pixels, 0, epoch, 0)
            assert made.shape == pixels.shape
            assert made.dtype == np.uint8
        assert np.array_equal(pixels, before)  # a cache is shared: never in place

    @pytest.mark.parametrize("channels", [1, 3])
    def test_white_paper_stays_white(self, name, strength, channels):
        paper = np.full((64, 64), 255, np.uint8)
        paper = in_colour(paper) if channels == 3 else paper
        for epoch in range(20):
            made = transforms.draw(step_of(name, strength), paper, 0, epoch, 0)
            if name not in PAPER_CHANGES:
                assert made.min() == 255, epoch
            elif name == "brightness":
                assert np.ptp(made) == 0  # darker, but evenly: no corner shows

    def test_the_ink_stays_within_bounds(self, name, strength, rng):
        changes = []
        for epoch in range(8):
            for row, shape in enumerate(CLASSES):
                pixels = draw_shape(shape, rng)
                made = transforms.draw(step_of(name, strength), pixels, 0, epoch, row)
                changes.append(transforms.ink_change(pixels, made))
        low, high = {
            "invert": (3, 30),
            "auto_augment": (0, 30),
            "rand_augment": (0, 30),
            "brightness": (0.3, 9),
            "noise": (0.9, 4),
            "thinner": (0, 1),
            "closing": (0.99, 5),
            "thicker": (1, 6),
            "watermark": (1, 6),
            "canny": (0.2, 3),
            "sobel": (0.2, 4),
            "affine": (0.15, 2.2),
            "lettering": (1, 2.5),
            "ink": (0.15, 1.9),
            "boxes": (0.05, 1),
        }.get(name, (0.4, 1.7))
        assert low <= min(changes), min(changes)
        assert max(changes) <= high, max(changes)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_draws_grey_and_colour_alike_in_kind(name, rng):
    for pixels in (draw_shape("cross", rng), in_colour(draw_shape("cross", rng))):
        for epoch in range(6):
            made = draw(name, pixels, epoch)
            assert made.shape == pixels.shape
            assert made.dtype == np.uint8


def test_morphology_is_named_by_its_effect(drawing):
    ink = int((drawing < 128).sum())
    counts = {}
    for name in ("thicker", "thinner"):
        made = transforms.draw(step_of(name), drawing, 0, 0, 0)
        counts[name] = int((made < 128).sum())
    assert counts["thicker"] > ink > counts["thinner"]


def test_closing_closes_a_gap_in_a_line():
    pixels = np.full((40, 40), 255, np.uint8)
    pixels[18:23, 4:36] = 0
    pixels[:, 20:22] = 255
    made = transforms.draw(
        always([{"closing": {"pixels": 7, "p": 1}}]), pixels, 0, 0, 0
    )
    assert pixels[20, 20] == 255
    assert made[20, 20] == 0


def test_boxes_are_of_the_papers_own_colour():
    pixels = np.full((64, 64, 3), (250, 240, 200), np.uint8)
    pixels[20:44, 20:44] = 10
    for epoch in range(20):
        made = transforms.draw(step_of("boxes", "high"), pixels, 0, epoch, 0)
        colours = {tuple(c) for c in made.reshape(-1, 3).tolist()}
        assert colours <= {(250, 240, 200), (10, 10, 10)}


def test_what_moves_into_the_frame_has_the_colour_of_the_paper(drawing):
    tinted = in_colour(drawing)
    tinted[drawing == 255] = (250, 235, 200)
    for epoch in range(20):
        made = transforms.draw(step_of("affine"), tinted, 0, epoch, 0)
        corners = made[[0, 0, -1, -1], [0, -1, 0, -1]]
        light = corners[corners.min(axis=1) > 150]
        assert len(light)
        assert (light == (250, 235, 200)).all()


def test_a_negative_keeps_its_own_dark_ground(drawing):
    for name in ("affine_boxes", "affine_lines_boxes", "elastic_grid"):
        for epoch in range(20):
            made = draw(name, 255 - drawing, epoch)
            assert made[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 20
            assert np.array_equal(255 - made, draw(name, drawing, epoch))


class TestMoves:
    def test_flips_and_quarter_turns_are_exact(self, rng):
        pixels = rng.integers(0, 256, (32, 32), np.uint8)
        pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1] = 255, 255, 255, 255
        assert np.array_equal(
            transforms.draw(step_of("flip"), pixels, 0, 0, 0), pixels[:, ::-1]
        )
        assert np.array_equal(
            transforms.draw(step_of("upside_down"), pixels, 0, 0, 0), pixels[::-1]
        )
        turns = {np.rot90(pixels, quarter).tobytes() for quarter in (1, 2, 3)}
        seen = {
            transforms.draw(step_of("quarter_turn"), pixels, 0, epoch, 0).tobytes()
            for epoch in range(40)
        }
        assert seen == turns

    def test_moves_together_equal_moves_one_by_one(self, drawing):
        smooth = cv2.GaussianBlur(drawing, (0, 0), 3)
        lines = ["flip", {"rotate": {"degrees": 30, "p": 1}}, {"affine": {"p": 1}}]
        rng_a, rng_b = (transforms.random.Random(4) for _ in range(2))
        together = transforms._Canvas(smooth, 255, rng_a)
        apart = transforms._Canvas(smooth, 255, rng_b)
        for step in recipes.parse_steps(lines, "test"):
            together.apply(step)
            apart.apply(step)
            apart.finish()
        difference = cv2.absdiff(together.finish(), apart.finish())
        assert difference.mean() < 1.0
        assert np.quantile(difference, 0.99) < 12

    def test_it_is_opencvs_rotation_about_the_centre(self, drawing):
        class Fixed:
            def uniform(self, low, high):
                return high

        canvas = transforms._Canvas(drawing, 255, Fixed())
        canvas.apply(recipes.parse_steps([{"rotate": {"degrees": 20}}], "test")[0])
        middle = ((drawing.shape[1] - 1) / 2, (drawing.shape[0] - 1) / 2)
        matrix = cv2.getRotationMatrix2D(middle, -20, 1.0)
        expected = cv2.warpAffine(drawing, matrix, drawing.shape[::-1], borderValue=255)
        assert cv2.absdiff(canvas.finish(), expected).max() <= 2


class TestRandomness:
    def test_a_draw_depends_on_seed_epoch_and_row_alone(self, drawing):
        for name in ("affine_boxes", "noise_blur", "rand_augment", "elastic_grid"):
            recipe = transforms.make_recipe(name)
            first = transforms.draw(recipe, drawing, 1, 2, 3)
            transforms.draw(recipe, drawing, 9, 9, 9)
            assert np.array_equal(first, transforms.draw(recipe, drawing, 1, 2, 3))
            others = [(0, 2, 3), (1, 0, 3), (1, 2, 0)]
            made = [transforms.draw(recipe, drawing, *other) for other in others]
            assert any(not np.array_equal(first, picture) for picture in made)

    def test_torchs_own_stream_is_left_alone(self, drawing):
        import torch

        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        draw("rand_augment", drawing)
        assert torch.equal(torch.rand(4), expected)

    @pytest.mark.parametrize(
        "lines",
        [
            ["flip", "upside_down"],
            ["upside_down", {"A.HorizontalFlip": {"p": 0.5}}],
        ],
        ids=["ours", "albumentations"],
    )
    def test_f46_two_coin_flips_are_independent(self, lines):
        """χ² of two p = 0.5 steps over 2,000 draws; 1 degree of freedom."""
        pixels = np.full((16, 16), 255, np.uint8)
        pixels[2:6, 2:4] = 0  # moves under either flip, and differently
        counts = np.zeros((2, 2))
        for row in range(2000):
            made = transforms.draw(always(lines), pixels, 0, row % 7, row)
            counts[int(made[:8].min() > 0), int(made[:, :8].min() > 0)] += 1
        expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
        assert ((counts - expected) ** 2 / expected).sum() < 10.8  # p = 0.001
        assert abs(counts.sum(0) - 1000).max() < 74  # p = 0.001 of a fair coin
        assert abs(counts.sum(1) - 1000).max() < 74

    def test_f46_neighbouring_rows_and_epochs_are_independent(self):
        """χ² of the same coin in row r and r + 1, and in epoch e and e + 1."""
        pixels = np.full((8, 8), 255, np.uint8)
        pixels[2:6, 2] = 0
        coin = np.array(
            [
                [
                    transforms.draw(always(["flip"]), pixels, 0, epoch, row)[3, 2] > 0
                    for row in range(60)
                ]
                for epoch in range(40)
            ]
        )
        for a, b in ((coin[:, :-1], coin[:, 1:]), (coin[:-1], coin[1:])):
            counts = np.array(
                [[np.sum((a == x) & (b == y)) for y in (0, 1)] for x in (0, 1)]
            )
            expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
            assert ((counts - expected) ** 2 / expected).sum() < 10.8

    def test_one_of_keeps_its_odds(self):
        pixels = np.full((8, 8), 200, np.uint8)
        lines = [{"one_of": {"steps": [{"invert": {"p": 3}}, {"flip": {"p": 1}}]}}]
        recipe = always(lines)
        inverted = sum(
            transforms.draw(recipe, pixels, 0, 0, row)[0, 0] == 55
            for row in range(2000)
        )
        assert abs(inverted - 1500) < 64  # p = 0.001

    @pytest.mark.slow
    def test_f45_eight_workers_draw_what_none_draws(self):
        assert _epochs_of(8) == _epochs_of(0)

    def test_f45_two_workers_draw_what_none_draws(self):
        none = _epochs_of(0)
        assert _epochs_of(2) == none
        assert none[0] != none[1]


def _epochs_of(workers):
    """Bytes of two shuffled epochs of 24 pictures, by position."""
    rng = np.random.default_rng(3)
    pixels = np.stack([draw_shape(CLASSES[n % 4], rng)[::3, ::3] for n in range(24)])
    held = cache.PixelCache(
        pixels,
        np.arange(24).astype(str),
        np.ones(24, bool),
        cache.Geometry(32, "pad", "grey", "keep"),
    )
    examples = datasets.Examples(held, np.arange(24), np.zeros(24, np.int64))
    dataset = datasets.SketchDataset(examples, "noise_blur", seed=1)
    loader: DataLoader = datasets.make_loader(
        dataset, 6, workers=workers, training=True
    )
    seen = []
    for epoch in range(2):
        loader.batch_sampler.sampler.epoch = epoch
        drawn = {
            int(position): picture.numpy().tobytes()
            for images, _, positions in loader
            for picture, position in zip(images, positions, strict=True)
        }
        seen.append([drawn[position] for position in range(24)])
    return seen


@pytest.mark.parametrize(
    "name",
    [n for n, k in steps.KINDS.items() if k.how != "paint" or n in steps.CHANNEL_WISE],
)
def test_a_grey_drawing_in_colour_is_drawn_as_one_channel(drawing, name, monkeypatch):
    kind = steps.KINDS[name]
    args = tuple(sorted((dial, d.mid) for dial, d in kind.dials.items()))
    recipe = transforms.Pipeline((recipes.Step(name, 1.0, args),))
    assert recipe.channel_wise
    picture = cv2.merge([drawing] * 3)
    made = [transforms.draw(recipe, picture, 1, 0, row) for row in range(5)]
    monkeypatch.setattr(transforms, "_only_channel", lambda pixels: None)
    whole = [transforms.draw(recipe, picture, 1, 0, row) for row in range(5)]
    assert np.abs(np.int16(made) - np.int16(whole)).max() <= 1
    assert (np.ptp(made, axis=-1) == 0).all()


def test_colour_and_what_may_colour_are_drawn_in_three_channels(drawing):
    coloured = cv2.merge([drawing, drawing, 255 - drawing // 3])
    assert transforms._only_channel(coloured) is None
    assert transforms._only_channel(drawing) is None
    noisy = transforms.Pipeline((recipes.Step("noise", 1.0, (("std", 0.1),)),))
    assert not noisy.channel_wise
    foreign = recipes.Step("A.ToSepia", 1.0)
    either = recipes.Step("one_of", 1.0, choices=(recipes.Step("flip", 1.0), foreign))
    assert not transforms.Pipeline((either,)).channel_wise
    made = transforms.draw(noisy, cv2.merge([drawing] * 3), 1, 0, 0)
    assert np.ptp(made, axis=-1).max() > 0
