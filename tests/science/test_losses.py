"""Losses: equal to the loop, with the right gradient, in any precision and size."""

import math

import jaxtyping
import pytest
import torch
from reference import notes as reference
from support.unchecked import unchecked
from torch.utils._python_dispatch import TorchDispatchMode

from fmkit import losses
from fmkit.losses import (
    masked_token_loss,
    next_token_loss,
    nt_xent_loss,
    reconstruction_loss,
    simclr_loss,
    supcon_loss,
)


@pytest.fixture
def pair(rng):
    """A rebuilt picture and the picture, three of each."""
    return torch.rand(2, 3, 2, 5, 4, generator=rng, dtype=torch.float64)


def test_reconstruction_is_the_loop(pair):
    """In the notes: pretraining loss, self-supervised loss."""
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


@pytest.fixture
def views(rng):
    """phi of two views of each of 5 examples."""
    return torch.randn(2, 5, 3, generator=rng, dtype=torch.float64)


LABELS = torch.tensor([0, 1, 0, 2, 1, 3, 0])  # 2 and 3 have no positive


def test_contrastive_losses_are_the_loops(views, rng):
    """In the notes: SimCLR loss, footnote 3, supervised contrastive learning."""
    hat, tilde = views.tolist()
    phi = torch.randn(7, 3, generator=rng, dtype=torch.float64)
    ours = [
        simclr_loss(*views),
        nt_xent_loss(*views, tau=0.3),
        supcon_loss(phi, LABELS, tau=0.3),
    ]
    expected = [
        reference.simclr(hat, tilde),
        reference.nt_xent(hat, tilde, 0.3),
        reference.supcon(phi.tolist(), LABELS.tolist(), 0.3),
    ]
    assert [loss.item() for loss in ours] == pytest.approx(expected, rel=1e-12)


def test_contrastive_gradients(views, rng):
    views = tuple(view.requires_grad_() for view in views.clone())
    phi = torch.randn(7, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(simclr_loss, views)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent_loss(a, b, tau=0.3), views)
    assert torch.autograd.gradcheck(lambda a: supcon_loss(a, LABELS, tau=0.3), [phi])


def test_contrastive_losses_when_every_view_is_alike():
    phi = torch.full((6, 4), 0.7)
    assert simclr_loss(phi, phi).item() == pytest.approx(6 * math.log(6))
    assert nt_xent_loss(phi, phi, tau=0.1).item() == pytest.approx(math.log(11))
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert supcon_loss(phi, labels, tau=0.1).item() == pytest.approx(math.log(5))


def test_supcon_with_a_label_for_each_example_is_nt_xent(views):
    labels = torch.arange(5).repeat(2)
    supervised = supcon_loss(views.flatten(0, 1), labels, tau=0.2)
    torch.testing.assert_close(supervised, nt_xent_loss(*views, tau=0.2))


def test_what_changes_nothing(views, rng):
    order = torch.randperm(5, generator=rng)
    hat, tilde = views
    for loss in (simclr_loss, lambda a, b: nt_xent_loss(a, b, tau=0.2)):
        shuffled = loss(hat[order], tilde[order])
        torch.testing.assert_close(shuffled, loss(hat, tilde))
        assert (loss(hat, tilde[order]) - loss(hat, tilde)).abs() > 1e-3
    swapped = nt_xent_loss(3 * tilde, hat / 7, tau=0.2)
    torch.testing.assert_close(swapped, nt_xent_loss(hat, tilde, tau=0.2))
    assert (simclr_loss(tilde, hat) - simclr_loss(hat, tilde)).abs() > 1e-3


def test_simclr_is_no_mean_over_examples(views):
    """Half a batch is not half the loss: the other half are its negatives."""
    hat, tilde = views[:, :4]
    halves = simclr_loss(hat[:2], tilde[:2]) + simclr_loss(hat[2:], tilde[2:])
    assert halves < simclr_loss(hat, tilde) - 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tau", [0.01, 1.0])
def test_contrastive_losses_in_any_precision(views, dtype, tau):
    hat, tilde = low = views.to(dtype)
    full, labels = low.double(), torch.arange(5).repeat(2)
    pairs = [
        (nt_xent_loss(hat, tilde, tau=tau), nt_xent_loss(*full, tau=tau)),
        (
            supcon_loss(low.flatten(0, 1), labels, tau=tau),
            supcon_loss(full.flatten(0, 1), labels, tau=tau),
        ),
        (simclr_loss(hat, tilde), simclr_loss(*full)),
    ]
    for found, expected in pairs:
        assert found.dtype == torch.float32
        # Rounding of a cosine in float32 is divided by tau
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 / tau)


def test_contrastive_losses_are_the_same_inside_autocast(views):
    hat, tilde = views.float()
    labels = torch.arange(5).repeat(2)

    def losses():
        both = torch.cat([hat, tilde])
        yield simclr_loss(hat, tilde)
        yield nt_xent_loss(hat, tilde, tau=0.01)
        yield supcon_loss(both, labels, tau=0.01)

    expected = [*losses()]
    with torch.autocast("cpu", torch.bfloat16):
        found = [*losses()]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_contrastive_losses_and_gradients_stay_finite(views, size):
    hat, tilde = (size * view.float() for view in views)
    phi = torch.cat([hat, tilde]).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 5])
    losses = simclr_loss(phi[:5], phi[5:]), nt_xent_loss(phi[:5], phi[5:], tau=0.01)
    (sum(losses) + supcon_loss(phi, labels, tau=0.01)).backward()
    assert phi.grad.isfinite().all()


def test_wrong_contrastive_arguments(views):
    hat, tilde = views
    message = r"phi_hat must have at least 2 rows \(one has no negatives\), got 1"
    for loss in (simclr_loss, lambda a, b: nt_xent_loss(a, b, tau=1.0)):
        with pytest.raises(ValueError, match=message):
            loss(hat[:1], tilde[:1])
    for tau in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"tau must be above 0, got {tau}"):
            nt_xent_loss(hat, tilde, tau=tau)
        with pytest.raises(ValueError, match=f"tau must be above 0, got {tau}"):
            supcon_loss(hat, torch.zeros(5).long(), tau=tau)
    with pytest.raises(ValueError, match="labels must have two views of one label"):
        supcon_loss(hat, torch.arange(5), tau=1.0)
    with pytest.raises(ValueError, match=r"phi_tilde must have the shape \(5, 3\)"):
        simclr_loss.__wrapped__(hat, tilde[:4])


@pytest.fixture
def words(rng):
    """Logits over 4 words at 5 places of 3 texts, the words, and which are masked."""
    u = torch.randn(3, 5, 4, generator=rng, dtype=torch.float64)
    x = torch.randint(4, (3, 5), generator=rng)
    masked = torch.rand(3, 5, generator=rng) < 0.4
    masked[0] = False
    return u, x, masked


def test_token_losses_are_the_loops(words):
    """In the notes: (14.6), (14.8), cross-entropy, masked language model."""
    u, x, _ = words
    pairs = zip(u.tolist(), x.tolist(), strict=True)
    of_texts = [reference.next_token(*pair) for pair in pairs]
    expected = pytest.approx(sum(of_texts) / len(of_texts), rel=1e-12)
    assert next_token_loss(u, x).item() == expected
    hidden = reference.masked_token(*(tensor.tolist() for tensor in words))
    assert masked_token_loss(*words).item() == pytest.approx(hidden, rel=1e-12)


def test_token_losses_when_all_words_are_masked_or_alike(words):
    u, x, masked = words
    everything = torch.ones_like(masked)
    assert masked_token_loss(u, x, everything) == next_token_loss(u, x)
    for level in (0.0, 1e4):
        alike = torch.full_like(u, level)
        assert next_token_loss(alike, x).item() == pytest.approx(math.log(4))
        assert masked_token_loss(alike, x, masked).item() == pytest.approx(math.log(4))


def test_gradient_of_a_token_loss_is_probability_less_one_hot(words):
    u, x, masked = words
    u.requires_grad_()
    assert torch.autograd.gradcheck(lambda u: next_token_loss(u, x), u)
    assert torch.autograd.gradcheck(lambda u: masked_token_loss(u, x, masked), u)
    next_token_loss(u, x).backward()
    wanted = u.softmax(dim=2) - torch.nn.functional.one_hot(x, 4)
    torch.testing.assert_close(u.grad, (wanted / x.numel()).detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_token_losses_in_half_precision(words, dtype):
    u, x, masked = words
    half = (20 * u).to(dtype)  # of which exp overflows in float16
    for ours, whole in (
        (next_token_loss(half, x), next_token_loss(half.double(), x)),
        (
            masked_token_loss(half, x, masked),
            masked_token_loss(half.double(), x, masked),
        ),
    ):
        assert ours.dtype == torch.float32
        assert ours.item() == pytest.approx(whole.item(), rel=1e-5)


def test_wrong_arguments_of_token_losses(words):
    u, x, masked = words
    with pytest.raises(
        ValueError, match=r"x must have the shape \(3, 5\), got \(3, 4\)"
    ):
        next_token_loss.__wrapped__(u, x[:, 1:])
    with pytest.raises(ValueError, match="masked must mask at least 1 token, got 0"):
        masked_token_loss(u, x, torch.zeros_like(masked))


# On a GPU: the host never waits, so it does not know what a tensor holds


@pytest.fixture
def elsewhere(monkeypatch):
    """Tensors count as those of a GPU, whose values the host must not ask for."""
    monkeypatch.setattr("fmkit.runtime.on_host", lambda tensor: False)


class HostKnowsNothing(TorchDispatchMode):
    """Refuse every operator after which the host would know a value or a number."""

    WAITING = ("nonzero", "_local_scalar_dense", "masked_select", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        assert name not in self.WAITING, name
        assert not by_mask, "a mask as an index"
        return func(*args, **(kwargs or {}))


def losses_that_select(words, rng):
    u, x, masked = words
    phi = torch.randn(7, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    u = u.clone().requires_grad_()
    yield phi, supcon_loss(phi, LABELS, tau=0.3)
    yield u, masked_token_loss(u, x, masked)


def test_selecting_losses_and_gradients_are_the_same_on_a_gpu(words, monkeypatch):
    def results():
        rng = torch.Generator().manual_seed(0)
        for leaf, loss in losses_that_select(words, rng):
            loss.backward()
            yield loss.detach(), leaf.grad

    expected = [*results()]
    monkeypatch.setattr("fmkit.runtime.on_host", lambda tensor: False)
    with HostKnowsNothing():
        found = [*results()]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_where_nothing_is_selected_a_loss_on_a_gpu_is_nan(words, elsewhere):
    """Training stops there: it looks for losses that are not finite."""
    u, x, masked = words
    assert masked_token_loss(u, x, torch.zeros_like(masked)).isnan()
    assert supcon_loss(torch.randn(5, 3), torch.arange(5), tau=1.0).isnan()


@pytest.mark.parametrize("name", ["supcon", "nt_xent", "masked"])
def test_losses_compile_into_one_graph(words, views, elsewhere, name):
    """With the backend that runs the graph as it is: only breaks are of interest."""
    plain = unchecked(losses)
    labels = torch.arange(5).repeat(2)
    loss = {
        "supcon": lambda: plain.supcon_loss(views.flatten(0, 1), labels, tau=0.3),
        "nt_xent": lambda: plain.nt_xent_loss(*views, tau=0.3),
        "masked": lambda: plain.masked_token_loss(*words),
    }[name]
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(), loss())
