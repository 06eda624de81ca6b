"""Muon: its steps are those of the formulas, of torch, and of a loop."""

import pytest
import torch

from fmkit.muon import QUINTIC, Muon, orthogonal


def stepped(rng, shapes, **options):
    """Parameters before and after three steps of given gradients, and these."""
    start = [torch.randn(*s, generator=rng, dtype=torch.float64) for s in shapes]
    parameters = [torch.nn.Parameter(p.clone()) for p in start]
    matrices = [p for p in parameters if p.dim() == 2]
    others = [p for p in parameters if p.dim() != 2]
    optimizer = Muon(matrices, others, lr=0.1, **options)
    gradients = []
    for _ in range(3):
        gradients.append([torch.randn_like(p) for p in start])
        for p, g in zip(parameters, gradients[-1], strict=True):
            p.grad = g.clone()
        optimizer.step()
    return start, gradients, parameters


def by_svd(g):
    """What the iteration does to each singular value by itself."""
    a, b, c = QUINTIC
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    s = s / g.norm()
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return u @ s.diag() @ v


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5), (1, 3)])
def test_orthogonal_acts_on_singular_values_alone(rng, shape):
    g = torch.randn(3, *shape, generator=rng, dtype=torch.float64)
    factors = orthogonal(g)
    for factor, matrix in zip(factors, g, strict=True):
        torch.testing.assert_close(factor, by_svd(matrix), rtol=1e-6, atol=1e-6)
    assert (torch.linalg.svdvals(factors) < 1.21).all()


def test_orthogonal_of_zeros_and_of_any_size(rng):
    g = torch.randn(2, 6, 4, generator=rng)
    assert torch.equal(orthogonal(torch.zeros(2, 6, 4)), torch.zeros(2, 6, 4))
    for size in (1e-4, 1e4):
        torch.testing.assert_close(
            orthogonal(g * size), orthogonal(g), atol=1e-3, rtol=0
        )


def test_steps_of_matrices_are_those_of_the_formula(rng):
    shapes = [(4, 6), (6, 4), (4, 6)]
    start, gradients, parameters = stepped(rng, shapes, weight_decay=0.2)
    for i, p in enumerate(start):
        mean = torch.zeros_like(p)
        for g in gradients:
            mean = 0.95 * mean + 0.05 * g[i]
            ahead = 0.05 * g[i] + 0.95 * mean
            p = p * (1 - 0.1 * 0.2) - 0.1 * 0.2 * 6**0.5 * by_svd(ahead)
        torch.testing.assert_close(parameters[i].detach(), p, rtol=1e-6, atol=1e-6)


def test_steps_of_others_are_adam_s(rng):
    start, gradients, parameters = stepped(rng, [(3,), (2, 2, 2)])
    theirs = [torch.nn.Parameter(p.clone()) for p in start]
    adam = torch.optim.Adam(theirs, lr=0.1, betas=(0.9, 0.95))
    for step in gradients:
        for p, g in zip(theirs, step, strict=True):
            p.grad = g.clone()
        adam.step()
    for ours, other in zip(parameters, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("low", [False, True])
def test_it_is_torch_s_own_but_for_precision(rng, monkeypatch, low):
    """Products are in bfloat16 where training is, as on a GPU; all else never is."""
    products = []

    def watched(g):
        products.append(g.dtype)
        return orthogonal(g)

    monkeypatch.setattr("fmkit.muon.orthogonal", watched)
    monkeypatch.setattr("fmkit.runtime.trains_in_bfloat16", lambda device: low)
    start = torch.randn(6, 8, generator=rng)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.1}
    one = Muon([ours], [], **options)
    options |= {"momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    other = torch.optim.Muon([theirs], **options)
    for _ in range(3):
        ours.grad = torch.randn(6, 8, generator=rng)
        theirs.grad = ours.grad.clone()
        one.step()
        other.step()
    assert products == 3 * [torch.bfloat16 if low else torch.float32]
    assert one.state[ours]["momentum"].dtype == torch.float32
    # Theirs iterates in bfloat16, of 8 bits, which 5 iterations make more of
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.05 * moved


def test_averages_are_made_once(rng):
    matrix, gain = (torch.nn.Parameter(torch.ones(s)) for s in ((2, 2), (2,)))
    optimizer = Muon([matrix], [gain], lr=0.1)
    held = []
    for _ in range(2):
        matrix.grad, gain.grad = torch.ones(2, 2), torch.ones(2)
        optimizer.step()
        tensors = (v for s in optimizer.state.values() for v in s.values())
        held.append([v.data_ptr() for v in tensors if torch.is_tensor(v)])
    assert len(held[0]) == 3
    assert held[0] == held[1]


def test_what_has_no_gradient_stays(rng):
    matrix, gain = (
        torch.nn.Parameter(torch.ones(2, 2)),
        torch.nn.Parameter(torch.ones(2)),
    )
    Muon([matrix], [gain], lr=0.1).step()
    assert torch.equal(matrix, torch.ones(2, 2))
    assert torch.equal(gain, torch.ones(2))


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"matrices must have two axes, got \(3,\)"):
        Muon([torch.ones(3)], [], lr=0.1)
    with pytest.raises(ValueError, match="lr must be above 0, got 0"):
        Muon([torch.ones(3, 3)], [], lr=0.0)


def test_of_a_model_takes_the_matrices_inside_its_blocks():
    model = torch.nn.Module()
    model.embedding = torch.nn.Embedding(5, 4)
    model.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    model.unembedding = torch.nn.Linear(4, 5, bias=False)
    model.unembedding.weight = model.embedding.weight  # tied: once among the others
    matrices, others = Muon.of(model, lr=0.1).param_groups
    block = model.blocks[0]
    assert [*map(id, matrices["params"])] == [id(block.weight)]
    expected = {id(model.embedding.weight), id(block.bias)}
    assert {*map(id, others["params"])} == expected
    assert len(others["params"]) == len(expected)
