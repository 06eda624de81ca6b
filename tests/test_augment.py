"""Random views: what is hidden, how much of it, and where the draws come from."""

import pytest
import torch

from fmkit.augment import mask_patches


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
        ({"patch": 3}, r"patch must divide the picture's sides \(6 and 8\), got 3"),
        ({"patch": 4}, r"patch must divide the picture's sides \(6 and 8\), got 4"),
        ({"patch": 0}, "patch must divide"),
        ({"share": 1.5}, "share must be from 0 to 1, got 1.5"),
        ({"share": -0.1}, "share must be from 0 to 1, got -0.1"),
    ],
)
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        masked(torch.ones(2, 1, 6, 8), **change)
