"""Muon: its steps are those of the formulas, of torch, and of a loop."""

import copy
import math
from unittest.mock import Mock

import pytest
import torch
from support.bounds import rounding

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


def trainable(rng, *shapes):
    return [torch.nn.Parameter(torch.randn(*s, generator=rng)) for s in shapes]


def test_wrong_arguments(rng):
    matrix, gain = trainable(rng, (3, 3), (3,))
    with pytest.raises(ValueError, match=r"matrices must have two axes.*got \(3,\)"):
        Muon([gain], [], lr=0.1)
    for lr in (-0.1, math.inf, math.nan, torch.ones(2)):
        with pytest.raises(ValueError, match=r"lr must .*, got .*(0.1|inf|nan|1\.)"):
            Muon([matrix], [], lr=lr)
    for decay in (-0.1, math.nan):
        with pytest.raises(ValueError, match=rf"weight_decay must .*, got {decay}"):
            Muon([matrix], [], lr=0.1, weight_decay=decay)
    with pytest.raises(ValueError, match="parameters must be at least one, got 0"):
        Muon([], [], lr=0.1)
    for dtype in (torch.complex64, torch.int32, torch.float16):
        with pytest.raises(ValueError, match=f"parameters must .*, got {dtype}"):
            Muon([], [torch.ones(2, 2, dtype=dtype)], lr=0.1)


# What every optimizer of torch promises


def test_a_closure_is_called_with_gradients_and_its_loss_returned(rng):
    by_closure, by_hand = (trainable(rng, (3, 2), (4,)) for _ in range(2))
    for ours, theirs in zip(by_closure, by_hand, strict=True):
        ours.data.copy_(theirs.data)

    def loss_of(parameters):
        return sum((p**2).sum() for p in parameters)

    one, other = (Muon(p[:1], p[1:], lr=0.1) for p in (by_closure, by_hand))
    for _ in range(2):

        def closure():
            assert torch.is_grad_enabled()
            one.zero_grad()
            loss = loss_of(by_closure)
            loss.backward()
            return loss

        expected = loss_of(by_hand)
        with torch.no_grad():
            assert torch.equal(one.step(closure), expected)
        assert not one.param_groups[0]["params"][0].grad.requires_grad
        other.zero_grad()
        expected.backward()
        assert other.step() is None
        for ours, theirs in zip(by_closure, by_hand, strict=True):
            assert torch.equal(ours, theirs)


def alone(parameter, gradients, **options):
    """What a parameter becomes that is trained alone."""
    twin = torch.nn.Parameter(parameter.detach().clone())
    muon = options.pop("muon", True)
    optimizer = Muon([twin] if muon else [], [] if muon else [twin], **options)
    for gradient in gradients:
        twin.grad = gradient.clone()
        optimizer.step()
    return twin


def test_every_group_has_its_own_options(rng):
    shapes = [(3, 2), (3, 2), (3, 2), (2, 3), (2, 3), (4,)]
    parameters = trainable(rng, *shapes)
    gradients = [[torch.randn(s, generator=rng) for _ in range(3)] for s in shapes]
    a, b, c, d, e, f = parameters
    optimizer = Muon([a], [f], lr=0.1, weight_decay=0.3)
    optimizer.add_param_group({"params": b})
    optimizer.add_param_group({"params": [c], "lr": 0.02, "weight_decay": 0.0})
    optimizer.add_param_group({"params": iter([d]), "muon": False})
    decayed = {"params": [e], "muon": False, "weight_decay": 0.5, "lr": 0.2}
    optimizer.add_param_group(decayed)
    expected = [
        alone(a, gradients[0], lr=0.1, weight_decay=0.3),
        alone(b, gradients[1], lr=0.1, weight_decay=0.3),
        alone(c, gradients[2], lr=0.02, weight_decay=0.0),
        alone(d, gradients[3], lr=0.1, muon=False),
    ]
    adam = torch.nn.Parameter(e.detach().clone())
    theirs = torch.optim.AdamW([adam], lr=0.2, betas=(0.9, 0.95), weight_decay=0.5)
    for step in range(3):
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g[step].clone()
        optimizer.step()
        adam.grad = gradients[4][step].clone()
        theirs.step()
    for ours, other in zip(parameters, expected, strict=False):
        assert torch.equal(ours, other)
    error = rounding(3 * 10, size=e.abs().max().item())  # ten roundings a step
    torch.testing.assert_close(e, adam, rtol=0, atol=error)
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == [0.3, 0, 0.3, 0, 0, 0.5]


def test_a_group_that_is_refused_is_not_added(rng):
    matrix, gain = trainable(rng, (3, 3), (3,))
    optimizer = Muon([matrix], [], lr=0.1)
    for group, message in (
        ({}, r"two axes, or muon=False in their group, got \(3,\)"),
        ({"muon": False, "lr": -1.0}, "lr must .*, got -1"),
        ({"muon": False, "betas": (0.9, 0.99)}, r"betas .*, got \(0.9, 0.99\)"),
        ({"muon": False, "momentum": 0.5}, "momentum .*, got 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": [gain], **group})
        assert len(optimizer.param_groups) == 2
    optimizer.add_param_group({"params": [gain], "muon": False})


def test_a_saved_state_is_restored_with_its_options(rng, tmp_path):
    matrix, gain = trainable(rng, (3, 2), (4,))
    optimizer = Muon([matrix], [gain], lr=0.1, weight_decay=0.3)
    optimizer.param_groups[1]["lr"] = 0.02  # of a schedule, say
    gradients = [[torch.randn_like(p) for p in (matrix, gain)] for _ in range(4)]

    def step(optimizer, values):
        groups = optimizer.param_groups
        for p, g in zip(
            (groups[0]["params"] + groups[1]["params"]), values, strict=True
        ):
            p.grad = g.clone()
        optimizer.step()

    for values in gradients[:2]:
        step(optimizer, values)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    twins = [torch.nn.Parameter(p.detach().clone()) for p in (matrix, gain)]
    restored = Muon(twins[:1], twins[1:], lr=7.0)
    restored.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert [g["lr"] for g in restored.param_groups] == [0.1, 0.02]
    assert [g["weight_decay"] for g in restored.param_groups] == [0.3, 0.0]
    for values in gradients[2:]:
        step(optimizer, values)
        step(restored, values)
    assert torch.equal(twins[0], matrix)
    assert torch.equal(twins[1], gain)
    assert copy.deepcopy(restored).state_dict()["param_groups"][0]["lr"] == 0.1


def test_schedules_and_hooks_of_torch(rng):
    start = trainable(rng, (3, 2), (4,))
    gradients = [torch.randn_like(p) for p in start]
    ends = []
    for rate in (0.1, torch.tensor([0.1], dtype=torch.float64)):
        matrix, gain = (torch.nn.Parameter(p.detach().clone()) for p in start)
        optimizer = Muon([matrix], [gain], lr=rate)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, float)
        hook = Mock()
        optimizer.register_step_post_hook(hook)
        matrix.grad, gain.grad = (g.clone() for g in gradients)
        optimizer.step()  # the rate is 0 in the first step
        assert torch.equal(matrix, start[0])
        assert torch.equal(gain, start[1])
        scheduler.step()
        optimizer.step()
        assert (matrix - start[0]).norm() > 0.01
        assert hook.call_count == 2
        optimizer.zero_grad(set_to_none=False)
        assert torch.equal(matrix.grad, torch.zeros(3, 2))
        optimizer.zero_grad()
        assert matrix.grad is None
        ends.append((matrix, gain))
    for plain, tensor in zip(*ends, strict=True):
        assert torch.equal(plain, tensor)


def test_a_scaled_loss_takes_the_same_step(rng):
    (start,) = trainable(rng, (3, 2))
    gradient = torch.randn(3, 2, generator=rng)
    scaled = torch.nn.Parameter(start.detach().clone())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # a power of 2 is exact
    optimizer = Muon([scaled], [], lr=0.1)
    scaler.scale((scaled * gradient).sum()).backward()
    scaler.step(optimizer)
    assert torch.equal(scaled, alone(start, [gradient], lr=0.1))


def test_a_sparse_gradient_is_refused_before_any_step(rng):
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    (matrix,) = trainable(rng, (3, 2))
    before = matrix.detach().clone()
    optimizer = Muon([matrix], embedding.parameters(), lr=0.1)
    loss = embedding(torch.tensor([1, 2])).sum() + matrix.sum()
    with pytest.raises(ValueError, match="gradients must be dense"):
        optimizer.step(lambda: loss.backward())
    assert torch.equal(matrix, before)


def test_equal_shapes_of_other_precisions_are_not_mixed(rng):
    one, other = trainable(rng, (30, 20), (30, 20))
    other.data = other.data.double()
    gradients = [torch.randn_like(p) for p in (one, other)]
    expected = [
        alone(p, [g], lr=0.1) for p, g in zip((one, other), gradients, strict=True)
    ]
    optimizer = Muon([one, other], [], lr=0.1)
    one.grad, other.grad = gradients
    optimizer.step()
    assert torch.equal(one, expected[0])
    assert torch.equal(other, expected[1])


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
