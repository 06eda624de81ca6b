"""The pretended devices: they refuse and report what real ones do."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support import pretend
from support.pretend import build
from torch import nn

from fmkit import runtime
from fmkit.train import train

CUDA, MPS = torch.device("cuda"), torch.device("mps")
MIXED = "Expected all tensors to be on the same device"


def line_of(text):
    """The place of a line of this file, as it is reported."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    [number] = [i for i, line in enumerate(lines, start=1) if line.endswith(text)]
    return f"tests/devices/test_pretend.py:{number}"


# Values


def test_values_are_those_of_the_cpu(gpu, rng):
    x = torch.randn(3, 4, generator=rng)
    there = x.to("cuda")
    assert there.device == torch.device("cuda:0")
    assert torch.equal((there @ there.T).cpu(), x @ x.T)
    assert there[1, 2].item() == x[1, 2].item()
    assert there.tolist() == x.tolist()
    assert f"{there[0, 0]:.2f}" == f"{x[0, 0]:.2f}"


def test_views_and_writes_share_their_data(gpu):
    x = torch.zeros(2, 3, device="cuda")
    row = x[1]
    row += 1
    x[:, 0] = 5
    assert x.tolist() == [[5, 0, 0], [5, 1, 1]]
    assert row.add_(1) is row
    assert torch.add(row, 1, out=row) is row


def test_a_step_of_training_is_that_of_the_cpu(gpu, rng):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    x = torch.randn(2, 3, 5, 5, generator=rng)

    def step(model, x):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        model(x).square().mean().backward()
        optimizer.step()
        return [tensor.cpu() for tensor in model.state_dict().values()]

    there = copy.deepcopy(model).to("cuda")
    for a, b in zip(step(model, x), step(there, x.to("cuda")), strict=True):
        assert torch.equal(a, b)
    assert all(p.device.type == "cuda" for p in there.parameters())


def test_weights_that_are_tied_stay_tied(gpu):
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    weight = model.to("cuda")[0].weight
    assert weight is model[1].weight
    assert copy.deepcopy(model)[0].weight.tolist() == weight.tolist()
    assert model.to("cpu")[0].weight is model[1].weight


def test_a_saved_file_is_read_to_the_cpu(gpu, tmp_path):
    model = nn.Linear(2, 2).to("cuda")
    torch.save(model.state_dict(), tmp_path / "x.pt")
    read = torch.load(tmp_path / "x.pt", map_location="cpu", weights_only=True)
    assert read["weight"].device.type == "cpu"
    assert torch.equal(read["weight"], model.weight.detach().cpu())
    model.load_state_dict(read)


def test_the_device_draws_from_its_own_generators(gpu):
    def drawn(**options):
        return torch.rand(3, **options).tolist()

    there = torch.Generator("cuda").manual_seed(1)
    assert there.device.type == "cuda"
    one, two = (drawn(device="cuda", generator=there) for _ in range(2))
    assert one != two
    assert drawn(generator=torch.Generator().manual_seed(1)) == one
    torch.manual_seed(1)
    assert drawn(device="cuda") == one
    assert drawn() == one  # the CPU's generator, which the device left alone
    order = torch.randperm(9, generator=there.manual_seed(1), device="cuda").tolist()
    assert (
        order == torch.randperm(9, generator=torch.Generator().manual_seed(1)).tolist()
    )


def test_autocast_is_that_of_cuda(gpu):
    x = torch.ones(2, 2, device="cuda")
    with runtime.autocast(runtime.pick_device()):
        assert (x @ x).dtype == torch.bfloat16
        assert x.softmax(dim=1).dtype == torch.float32
        with runtime.exact():
            assert (x @ x).dtype == torch.float32
    assert (x @ x).dtype == torch.float32


def test_nothing_is_left_of_the_device(compiler):
    with pretend.cuda():
        assert runtime.pick_device() == CUDA
        x = torch.ones(2, device="cuda")
    assert not torch.cuda.is_available()
    with pytest.raises(RuntimeError, match="is gone"):
        x + 1
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.Generator("cuda")
    with pytest.raises((AssertionError, RuntimeError), match="CUDA"):
        torch.ones(2, device="cuda")


# What is refused


def shift_on_the_cpu(x):
    return x + torch.arange(4.0)


def noise_of_the_cpu(x):
    return x + torch.randn(4, device=x.device, generator=torch.Generator())


def noise_for_the_cpu(x):
    return torch.randn(4, generator=torch.Generator(x.device))


@pytest.mark.parametrize(
    ("planted", "error", "message"),
    [
        (shift_on_the_cpu, RuntimeError, MIXED),
        (lambda x: torch.cat([x, torch.ones(1)]), RuntimeError, MIXED),
        (lambda x: torch.stack([x[0], torch.tensor(1.0)]), RuntimeError, MIXED),
        (lambda x: x.expand(2, 4) @ torch.ones(4, 1), RuntimeError, MIXED),
        (lambda x: x.gather(0, torch.tensor([1])), RuntimeError, MIXED),
        (lambda x: x.index_put((x > 0,), torch.ones(4)), RuntimeError, MIXED),
        (lambda x: torch.ones(4)[x > 0], RuntimeError, "indices should be"),
        (noise_of_the_cpu, RuntimeError, "Expected a 'cuda' device type for generator"),
        (noise_for_the_cpu, RuntimeError, "'CUDA' backend"),
        (lambda x: x.numpy(), TypeError, "can't convert cuda:0"),
        (np.asarray, TypeError, "can't convert cuda:0"),
    ],
)
def test_planted_in_a_step_it_stops_the_step(gpu, planted, error, message):
    model = nn.Linear(4, 4).to("cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_of(x, change=lambda x: x):
        changed = change(x)
        return model(x).square().mean() + torch.as_tensor(changed).sum() * 0

    batches = [torch.ones(4, device="cuda")]
    options = {"modules": [model], "steps": 1}
    list(train(loss_of, batches, optimizer, **options))
    with pytest.raises(error, match=re.escape(message)):
        list(train(lambda x: loss_of(x, planted), batches, optimizer, **options))


@pytest.mark.parametrize(
    "allowed",
    [
        lambda x: x * torch.tensor(2.0),
        lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
        lambda x: x.masked_fill(x > 0, 1.0),
        lambda x: x[torch.tensor([1, 0])],
    ],
)
def test_numbers_and_indices_may_be_on_the_cpu(gpu, allowed):
    assert allowed(torch.ones(4, device="cuda")).device.type == "cuda"


def test_an_equality_in_bfloat16_fails(gpu, rng):
    """As a cell of a chapter that compares a model with a loop, without `exact`."""
    model = nn.Linear(64, 64).to("cuda")
    x = torch.randn(8, 64, generator=rng).to("cuda")
    loop = torch.stack([model.weight @ row + model.bias for row in x])

    def compare():
        with runtime.autocast(x.device):
            torch.testing.assert_close(model(x).float(), loop)

    with pytest.raises(AssertionError, match="not close"):
        compare()
    with runtime.exact():
        compare()


def test_the_cpu_can_compute_as_a_gpu_would():
    x = torch.ones(2, 2)
    with pretend.bfloat16(), runtime.autocast(x.device):
        assert (x @ x).dtype == torch.bfloat16
        with runtime.exact(), runtime.autocast(x.device):
            assert (x @ x).dtype == torch.float32
    with runtime.autocast(x.device):
        assert (x @ x).dtype == torch.float32


def test_float64_is_refused_on_a_mac(mac):
    x = torch.ones(2, device="mps")
    refused = [
        x.double,
        lambda: torch.ones(2, dtype=torch.float64, device="mps"),
        lambda: torch.ones(2, dtype=torch.float64).to("mps"),
        lambda: x.to(torch.float64),
    ]
    for call in refused:
        with pytest.raises(TypeError, match="MPS Tensor to float64"):
            call()
    assert x.cpu().double().sum() == 2
    assert runtime.pick_device("mps") == MPS
    with runtime.autocast(MPS):
        assert (x @ x).dtype == torch.float32


# What waits


def waits_of(call):
    with pretend.cuda() as seen:
        x = torch.tensor([2.0, 1.0, 3.0], device="cuda")
        mask = x > 1
        seen.clear()
        call(x, mask)
        return [wait.partition(" at ")[0] for wait in seen.waits]


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        (lambda x, mask: x.sum().item(), ["item"]),
        (lambda x, mask: bool(mask.all()), ["item"]),
        (lambda x, mask: float(x[0]), ["item"]),
        (lambda x, mask: x.tolist(), ["copy to the host"]),
        (lambda x, mask: x.cpu(), ["copy to the host"]),
        (lambda x, mask: torch.zeros(3).copy_(x), ["copy to the host"]),
        (lambda x, mask: mask.nonzero(), ["nonzero"]),
        (lambda x, mask: torch.where(mask), ["nonzero"]),
        (lambda x, mask: x[mask], ["boolean index"]),
        (lambda x, mask: x.masked_select(mask), ["masked_select"]),
        (lambda x, mask: x.unique(), ["unique"]),
        (lambda x, mask: torch.equal(x, x), ["equal"]),
        (lambda x, mask: x.repeat_interleave(mask.long()), ["repeat_interleave"]),
        (lambda x, mask: x[torch.tensor([0])], ["copy to the device"]),
        (lambda x, mask: x[[0, 1]], ["copy to the device"]),
        (lambda x, mask: x.new_tensor([1.0]), ["copy to the device"]),
        (lambda x, mask: torch.ones(3).to(x), ["copy to the device"]),
        (lambda x, mask: x.copy_(torch.ones(3)), ["copy to the device"]),
        (lambda x, mask: x[mask.long()[0]], ["item"]),
        (lambda x, mask: torch.cuda.synchronize(), ["synchronize"]),
        (lambda x, mask: torch.cuda.Event().synchronize(), ["event"]),
        (lambda x, mask: x[0], []),
        (lambda x, mask: x[mask.long()], []),
        (lambda x, mask: x.__setitem__(mask, 0.0), []),
        (lambda x, mask: torch.where(mask, x, 0.0), []),
        (lambda x, mask: x.repeat_interleave(mask.long(), output_size=2), []),
        (lambda x, mask: torch.full((3,), 2.0, device="cuda"), []),
        (lambda x, mask: torch.rand(3, device="cuda"), []),
    ],
)
def test_what_waits_for_the_device(compiler, call, waits):
    assert waits_of(call) == waits


def test_a_copy_that_need_not_wait_is_told_apart(gpu):
    torch.ones(3).pin_memory().to("cuda", non_blocking=True)  # copied
    assert gpu.copies == [f"copy to the device at {line_of('# copied')}"]
    assert gpu.waits == []


def test_a_new_synchronization_in_a_step_is_seen_where_it_is(gpu):
    model = nn.Linear(3, 3).to("cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [torch.ones(3, device="cuda")] * 5
    looks = []

    def loss_of(x):
        loss = model(x).square().mean()
        if looks:
            looks.append(loss.item())  # planted
        return loss

    def run():
        for record in train(loss_of, batches, optimizer, modules=[model], steps=5):
            if record.step == 3:  # the fifth step looks, as the last one
                seen = [*gpu.waits]
            if record.step == 0:
                gpu.clear()
        return seen

    assert run() == []
    looks.append(0)
    assert run() == [f"item at {line_of('# planted')}"] * 3


# Where nothing can be compiled


def test_one_line_says_that_there_is_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "COMPILER", "no-such-compiler")
    with pytest.raises(pretend.NoCompilerError, match=r"^there is no no-such-compiler"):
        build.compile_to(tmp_path / "guard.so")
    assert [*tmp_path.iterdir()] == []
