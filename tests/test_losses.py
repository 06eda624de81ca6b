"""Losses: equal to the loop, with the right gradient, in any precision and size."""

import jaxtyping
import pytest
import reference
import torch

from fmkit.losses import reconstruction_loss


@pytest.fixture
def pair(rng):
    """A rebuilt picture and the picture, three of each."""
    return torch.rand(2, 3, 2, 5, 4, generator=rng, dtype=torch.float64)


def test_reconstruction_is_the_loop(pair):
    rebuilt, x = pair
    pairs = zip(rebuilt.float().tolist(), x.float().tolist(), strict=True)
    expected = [reference.reconstruction(*one) for one in pairs]
    # The loss computes in float32, whatever comes in
    assert reconstruction_loss(rebuilt, x).tolist() == pytest.approx(expected, rel=1e-6)


def test_each_picture_has_a_loss_of_its_own(pair):
    rebuilt, x = pair
    whole = reconstruction_loss(rebuilt, x)
    alone = [reconstruction_loss(r[None], p[None]) for r, p in zip(*pair, strict=True)]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=0, atol=0)


def test_gradient_is_that_of_the_formula(pair):
    rebuilt, x = pair[0].float().requires_grad_(), pair[1].float()
    reconstruction_loss(rebuilt, x).sum().backward()
    d = x[0].numel()
    torch.testing.assert_close(rebuilt.grad, 2 * (rebuilt - x).detach() / d)


def test_closed_forms(pair):
    _, x = pair
    assert reconstruction_loss(x, x).tolist() == [0, 0, 0]
    torch.testing.assert_close(reconstruction_loss(x + 0.5, x), torch.full((3,), 0.25))
    # The best constant picture gives the mean variance of a pixel
    mean = x.mean(dim=0, keepdim=True).expand_as(x)
    variance = x.var(dim=0, correction=0).mean().float()
    torch.testing.assert_close(reconstruction_loss(mean, x).mean(), variance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    x = torch.zeros(1, 1, 200, 200, dtype=dtype)
    loss = reconstruction_loss(torch.full_like(x, 2.0), x)
    assert loss.dtype == torch.float32  # 40,000 times 4 would overflow float16
    assert loss.item() == 4


def test_large_errors_stay_finite():
    x = torch.zeros(1, 1, 2, 2)
    assert reconstruction_loss(x + 1e18, x).item() == pytest.approx(1e36)


def test_shapes_must_agree():
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(jaxtyping.TypeCheckError):  # as tests check shapes
        reconstruction_loss(x, x[..., :3])
    with pytest.raises(ValueError, match="x_rebuilt must have the shape"):
        reconstruction_loss.__wrapped__(x, x[..., :3])
