"""Random views: what is hidden, how much of it, and where the draws come from.

Views are held to a loop over pixels, their draws to the distributions that the
settings name.
"""

import math
from dataclasses import fields, replace

import pytest
import torch
from reference import notes as reference
from support.unchecked import unchecked

from fmkit import augment
from fmkit.augment import (
    ViewConfig,
    Views,
    draw_views,
    mask_patches,
    mask_tokens,
    random_views,
    render_views,
    two_views,
)

EVERYTHING = ViewConfig(
    size=6,
    rotation=40.0,
    brightness=0.6,
    contrast=0.6,
    saturation=0.6,
    hue=0.4,
    grey=0.3,
)


def masked(x, **options):
    generator = torch.Generator().manual_seed(options.pop("seed", 0))
    return mask_patches(x, **{"patch": 2, "share": 0.5, **options}, generator=generator)


def test_a_square_is_hidden_whole_or_not_at_all():
    x = torch.rand(50, 3, 6, 8) + 1
    kept = masked(x) != 0
    squares = kept.unflatten(2, (3, 2)).unflatten(4, (4, 2))  # (50, 3, 3, 2, 4, 2)
    assert torch.equal(squares.all(dim=(1, 3, 5)), squares.any(dim=(1, 3, 5)))


def test_what_is_seen_is_the_picture():
    x = torch.rand(50, 1, 6, 8) + 1
    seen = masked(x)
    assert torch.equal(seen[seen != 0], x[seen != 0])


def test_tokens_are_masked_by_their_share_and_nowhere_else(rng):
    """In the notes: masked language model."""
    x = torch.randint(7, (200, 100), generator=rng)
    seen, hidden = mask_tokens(x, share=0.15, mask=9, generator=rng)
    assert torch.equal(seen == 9, hidden)
    assert torch.equal(seen[~hidden], x[~hidden])
    # Four deviations of a share of .15 among 20,000 are .0101
    assert hidden.double().mean().item() == pytest.approx(0.15, abs=0.0101)
    again, _ = mask_tokens(x, share=0.15, mask=9, generator=rng)
    assert not torch.equal(again, seen)


def test_a_token_is_masked_however_small_the_share(rng):
    x = torch.zeros(2, 3, dtype=torch.long)
    _, hidden = mask_tokens(x, share=1e-9, mask=1, generator=rng)
    assert hidden.sum() == 1
    _, hidden = mask_tokens(x, share=1.0, mask=1, generator=rng)
    assert hidden.all()
    with pytest.raises(ValueError, match=r"share must be above 0 .* got 0\.0"):
        mask_tokens(x, share=0.0, mask=1, generator=rng)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_that_is_hidden(share):
    x = torch.ones(1000, 1, 8, 8)
    hidden = 1 - masked(x, share=share).mean().item()
    # 16,000 independent squares: four deviations are 4 sqrt(s (1 - s) / 16,000) < .016
    assert hidden == pytest.approx(share, abs=0.016)


def test_nothing_and_everything():
    x = torch.rand(4, 1, 6, 6) + 1
    assert torch.equal(masked(x, share=0.0), x)
    assert masked(x, share=1.0).abs().sum() == 0


def test_pictures_and_squares_are_drawn_apart():
    kept = masked(torch.ones(200, 1, 4, 4))[:, 0, ::2, ::2].flatten(1)  # (200, 4)
    correlation = torch.corrcoef(kept.T)
    assert len(kept.unique(dim=0)) == 16  # missing one has probability 16 e^-12.5
    # Of independent draws: a deviation of 1 / sqrt(200) = .07
    assert (correlation - torch.eye(4)).abs().max() < 0.3


def test_draws_belong_to_the_generator():
    x = torch.ones(20, 1, 8, 8)
    assert torch.equal(masked(x, seed=1), masked(x, seed=1))
    assert not torch.equal(masked(x, seed=1), masked(x, seed=2))
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    masked(x)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_is_kept(dtype):
    assert masked(torch.ones(2, 1, 4, 4, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 3}, r"patch must divide .*\(6 and 8\), got 3"),
        ({"patch": 4}, r"patch must divide .*\(6 and 8\), got 4"),
        ({"patch": 0}, "patch must divide"),
        ({"share": 1.5}, "share must be from 0 to 1, got 1.5"),
        ({"share": -0.1}, "share must be from 0 to 1, got -0.1"),
    ],
)
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        masked(torch.ones(2, 1, 6, 8), **change)


def random_images(B, c, H=7, W=9):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (B, c, H, W), generator=generator, dtype=torch.uint8)


def views_of(config, B=200, height=7, width=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return draw_views(config, B, height=height, width=width, generator=generator)


def neutral(B, height, width):
    """Views that change nothing but the size."""
    zero, one = torch.zeros(B), torch.ones(B)
    no = torch.zeros(B, dtype=torch.bool)
    place = zero, zero, width * one, height * one
    return Views(*place, no, zero, one, one, one, zero, no)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_the_loop(channels):
    """In the notes: augmentation."""
    images = random_images(200, channels)  # more than one chunk
    views = views_of(EVERYTHING)
    found = render_views(images, views, size=6)
    for i in range(len(images)):
        one = {f.name: getattr(views, f.name)[i].item() for f in fields(views)}
        expected = torch.tensor(reference.view(images[i].tolist(), 6, one))
        # Where hue meets a colour that is nearly grey float32 has 4 digits left
        torch.testing.assert_close(found[i], expected, rtol=0, atol=2e-4)


def test_the_whole_picture_is_itself():
    images = random_images(5, 3, 8, 8)
    found = render_views(images, neutral(5, 8, 8), size=8)
    torch.testing.assert_close(found, images / 255, rtol=0, atol=1e-5)


def test_a_flip_is_a_mirror_and_a_quarter_turn_is_exact():
    images, views = random_images(5, 1, 8, 8), neutral(5, 8, 8)
    mirrored = replace(views, flip=torch.ones(5, dtype=torch.bool))
    turned = replace(views, angle=torch.full((5,), math.pi / 2))
    x = images / 255
    for some, expected in ((mirrored, x.flip(-1)), (turned, x.rot90(dims=(2, 3)))):
        found = render_views(images, some, size=8)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_hue_goes_round():
    """Three shifts by a third of the circle take every colour back to itself."""
    x = random_images(50, 3, 4, 4)
    third = replace(neutral(50, 4, 4), hue=torch.full((50,), 1 / 3))
    once = render_views(x, third, size=4)
    torch.testing.assert_close(once, x.roll(1, dims=1) / 255, rtol=0, atol=1e-5)


def test_grey_pictures_have_no_hue():
    x = random_images(50, 1, 4, 4).expand(-1, 3, -1, -1)
    turned = replace(neutral(50, 4, 4), hue=torch.linspace(-0.5, 0.5, 50))
    found = render_views(x, turned, size=4)
    torch.testing.assert_close(found, x / 255, rtol=0, atol=1e-6)


def test_views_are_drawn_as_their_settings_say():
    n = 20_000
    config = ViewConfig(
        size=4,
        area=(0.2, 0.6),
        ratio=(0.8, 1.25),  # no side is longer than the picture's
        flip=0.3,
        rotation=90.0,
        jitter=0.8,
        brightness=0.4,
        contrast=0.3,
        saturation=0.2,
        hue=0.1,
        grey=0.25,
    )
    v = views_of(config, n, height=100, width=100)
    changed = v.brightness != 1
    uniform = {  # what is uniform from 0 to 1
        "area": (v.width * v.height / 1e4 - 0.2) / 0.4,
        "ratio": (v.width / v.height).log() / math.log(1.25) / 2 + 0.5,
        "angle": v.angle / math.pi + 0.5,
        "left": v.left / (100 - v.width),
        "top": v.top / (100 - v.height),
        "brightness": (v.brightness[changed] - 0.6) / 0.8,
        "contrast": (v.contrast[changed] - 0.7) / 0.6,
        "saturation": (v.saturation[changed] - 0.8) / 0.4,
        "hue": (v.hue[changed] + 0.1) / 0.2,
    }
    for name, values in uniform.items():
        ordered = values.sort().values
        distance = (ordered - torch.linspace(0, 1, len(values))).abs().max().item()
        # Kolmogorov: beyond 2.2 / sqrt(n) once in 8,000
        assert distance < 2.2 / len(values) ** 0.5, name
    shares = {"flip": (v.flip, 0.3), "grey": (v.grey, 0.25), "jitter": (changed, 0.8)}
    for name, (happened, share) in shares.items():
        # Four deviations: at most 4 sqrt(.25 / 20,000) = .014
        assert happened.double().mean() == pytest.approx(share, abs=0.014), name
    assert torch.equal(v.hue != 0, changed)
    assert torch.equal(v.contrast != 1, changed)
    draws = [x for x in uniform.values() if len(x) == n] + [v.flip, v.grey, changed]
    related = torch.corrcoef(torch.stack([x.double() for x in draws]))
    # Of independent draws: four deviations are 4 / sqrt(n) = .03
    assert (related - torch.eye(len(draws))).abs().max() < 0.03


def test_a_crop_lies_in_its_picture():
    v = views_of(replace(EVERYTHING, area=(0.05, 1.0)), 5000)
    assert v.left.min() >= 0
    assert v.top.min() >= 0
    assert (v.left + v.width).max() <= 9 + 1e-4
    assert (v.top + v.height).max() <= 7 + 1e-4


def test_two_views_differ_and_belong_to_the_generator():
    """In the notes: positive pair."""
    images, generator = random_images(20, 3), torch.Generator().manual_seed(0)
    x_hat = random_views(images, EVERYTHING, generator=generator)
    x_tilde = random_views(images, EVERYTHING, generator=generator)
    assert ((x_hat - x_tilde).abs().amax(dim=(1, 2, 3)) > 0.01).all()
    again = random_views(images, EVERYTHING, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x_hat, again)
    assert x_hat.min() >= 0
    assert x_hat.max() <= 1
    both = two_views(
        images, EVERYTHING, generator=torch.Generator().manual_seed(0)
    ).chunk(2)
    assert torch.equal(both[0], x_hat)
    assert torch.equal(both[1], x_tilde)


def test_views_of_some_rows_are_those_rows_of_all():
    images, rows = random_images(20, 3), slice(5, 15)
    for function in (random_views, two_views):
        options = {"config": EVERYTHING}
        whole, part = (
            function(images, **options, generator=torch.Generator().manual_seed(0), **r)
            for r in ({}, {"rows": rows})
        )
        whole = whole.unflatten(0, (-1, 20))[:, rows].flatten(0, 1)
        # Chunks begin elsewhere, so vector instructions may round otherwise
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_the_same_inside_autocast(channels):
    """Training draws them inside autocast, which lowers products to bfloat16."""
    images, views = random_images(50, channels), views_of(EVERYTHING, B=50)
    expected = render_views(images, views, size=6)
    with torch.autocast("cpu", torch.bfloat16):
        found = render_views(images, views, size=6)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_compile_into_one_graph(channels):
    """With the backend that runs the graph as it is: only breaks are of interest."""
    plain = unchecked(augment)
    images, views = random_images(5, channels), views_of(EVERYTHING, B=5)
    views = plain.Views(**vars(views))
    compiled = torch.compile(plain.render_views, fullgraph=True, backend="eager")
    expected = plain.render_views(images, views, size=6)
    torch.testing.assert_close(compiled(images, views, size=6), expected)


def test_a_view_takes_the_next_draws_of_its_generator():
    """The order of the draws belongs to every recorded run."""
    one, other = (torch.Generator().manual_seed(0) for _ in range(2))
    for B in (1, 7, 33):  # fewer and more than a vector has
        views = draw_views(EVERYTHING, B, height=7, width=9, generator=one)
        draws = [torch.rand(B, generator=other) for _ in range(12)]
        assert torch.equal(views.flip, draws[4] < EVERYTHING.flip)
        assert torch.equal(views.grey, draws[11] < EVERYTHING.grey)
        torch.testing.assert_close(views.left, draws[2] * (9 - views.width))
        assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((2, 3, 8, 8), torch.nan), "images must be bytes .*float32"),
        (random_images(2, 2), "images must have 1 or 3 channels, got 2"),
        (
            random_images(2, 3, 5, 9),
            r"images must be at least as large as a view \(6 by 6",
        ),
    ],
)
def test_wrong_pictures(images, message):
    with pytest.raises(ValueError, match=message):
        render_views.__wrapped__(images, neutral(2, 8, 8), size=6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size must be at least 1 pixel, got 0"),
        ({"area": (0.0, 1.0)}, r"area must be .* at most 1\.0, got \(0\.0, 1\.0\)"),
        ({"area": (0.2, 1.1)}, "area must be"),
        ({"ratio": (2.0, 1.0)}, "ratio must be"),
        ({"flip": 1.5}, "flip must be from 0 to 1, got 1.5"),
        ({"brightness": -0.1}, "brightness must be from 0 to 1, got -0.1"),
        ({"hue": 0.6}, "hue must be from 0 to 0.5 turns, got 0.6"),
        ({"rotation": 200.0}, "rotation must be from 0 to 180 degrees, got 200.0"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=message):
        replace(EVERYTHING, **change)
