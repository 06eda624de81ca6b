"""Let several processes train one model: each computes some rows of every batch.

``torchrun`` starts the processes; in a single one, tensors and modules pass through
unchanged. Each process draws for the whole batch, from generators in equal states, and
keeps its own rows. The result therefore does not depend on the number of processes, and
a different number of them can continue a run. A loss over pairs needs the rows of all
processes::

    ranks.processes(device)
    network = ranks.replicated(model)  # the weights of `model` are trained

    def loss_of(batch):
        x_hat, x_tilde = two_views(images[batch], rows=ranks.part(len(batch)), ...)
        phi_hat, phi_tilde = network(x_hat), network(x_tilde)
        return nt_xent_loss(ranks.gathered(phi_hat), ranks.gathered(phi_tilde), tau=tau)

A loss that is a mean over rows takes its own rows, and is averaged::

    def loss_of(batch):
        x = ranks.rows(batch)
        return ranks.mean(next_token_loss(network(x[:, :-1]), x[:, 1:]))

This is the only module that asks about processes. In the docstrings, W is their number.
"""

import atexit
import copy
import os
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from fmkit import runtime
from fmkit._check import require

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # of a process that waits for another one


def processes(device: torch.device) -> None:
    """Join the processes that torchrun started; do nothing if there are none.

    They talk through NCCL if each has a GPU of its own, otherwise through gloo.
    """
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        backend = "nccl" if runtime.own_gpu(device) else "gloo"
        store, number, count = next(rendezvous("env://", timeout=PATIENCE))
        options = {"rank": number, "world_size": count, "timeout": PATIENCE}
        options["store"] = _fresh(store, number, count)
        dist.init_process_group(backend, **options)
        atexit.register(dist.destroy_process_group)


def _fresh(store: dist.Store, number: int, count: int) -> dist.Store:
    """Return a part of the store that all processes of this start share, and no other.

    After a failure torchrun starts all again and keeps the store, with the addresses of
    processes that are gone. Here each process names itself anew, and the first answers
    to every name with its own, until all have read it.
    """
    own = uuid.uuid4().hex
    if number > 0:
        store.set(f"name of {number}", own)
        first = store.get(f"answer to {own}").decode()  # waits for it
        store.set(f"{first} read by {number}", "")
        return dist.PrefixStore(first, store)
    others = range(1, count)
    while not all(store.check([f"{own} read by {i}"]) for i in others):
        for i in others:
            name = store.get(f"name of {i}").decode()
            store.set(f"answer to {name}", own)
        time.sleep(0.01)
    return dist.PrefixStore(own, store)


def started() -> int:
    """Return how many processes torchrun started, whether they have joined or not."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def size() -> int:
    """Return W, the number of processes that compute together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0, also before it joins the others.

    Only process 0 writes files.
    """
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def part(n: int) -> slice:
    """Return which of the n rows of a batch this process computes.

    Raises ``ValueError`` if W does not divide n.
    """
    rule = f"be a multiple of the number of processes ({size()})"
    require(n % size() == 0, "batch_size", rule, n)
    share = n // size()
    return slice(rank() * share, (rank() + 1) * share)


def rows(batch: Tensor) -> Tensor:
    """Return the rows of a batch that this process computes: see :func:`part`."""
    return batch[part(len(batch))]


def gathered(x: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of the whole batch.

    In the backward pass a row receives the sum of the gradients of all processes. Each
    of them computes the same loss, so that is W times the gradient, and the mean over
    processes which :func:`replicated` takes divides by W. Half precision becomes
    float32, because gradients are added.
    """
    if size() == 1:
        return x
    return _Gathered.apply(x.to(torch.promote_types(x.dtype, torch.float32)))


def mean(x: Tensor, *, weight: Tensor | float = 1.0) -> Tensor:
    """Return the mean over processes of a loss, each with its weight.

    It is NaN in all processes if it is NaN in one. `weight` is the number of terms of
    which `x` is the mean, if that differs between processes. The gradient is the one
    that :func:`replicated` needs, which takes the mean of gradients.
    """
    if size() == 1:
        return x
    return _Mean.apply(x, torch.as_tensor(weight, dtype=x.dtype, device=x.device))


def agree(finite: Tensor) -> Tensor:
    """Return whether a flag is true in all processes: `agree` of :func:`train`.

    See :func:`fmkit.train.train`.
    """
    if size() == 1:
        return finite
    return _reduced(finite.to(torch.int32), dist.ReduceOp.MIN).bool()


def from_first(make: Callable[[], T]) -> T:
    """Return in every process what ``make()`` returns in process 0, or raise its error.

    It is called in process 0 only. For files and clocks, which may differ.
    """
    if size() == 1:
        return make()
    outcome = [None, None]
    if rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def replicated(module: nn.Module) -> nn.Module:
    """Return a network that computes `module` and averages gradients over processes.

    Alone, it is the module itself. Otherwise it shares all weights and statistics with
    the module, and the statistics of its batch norms are those of the whole batch. The
    module itself stays as it is, so it may be evaluated, copied and saved as usual.
    Source: DistributedDataParallel, Li et al. 2020.
    """
    if size() == 1:
        return module
    shared = [*module.parameters(), *module.buffers()]
    twin = copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
    if shared[0].device.type == "cuda":
        twin = nn.SyncBatchNorm.convert_sync_batchnorm(twin)
    else:
        for layer in twin.modules():
            if isinstance(layer, _BatchNorm):
                layer.__class__ = _GlobalBatchNorm  # torch has one for CUDA only
    # Every process computes the same statistics, so none need to be sent
    known = [name for name, _ in twin.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(twin, known)
    return DistributedDataParallel(twin)


def sharded(model: nn.Module) -> nn.Module:
    """Divide the weights of a model among the processes, in place, and return it.

    Each of ``model.blocks``, and then the rest, is put together when it computes, and
    gradients are averaged. Make the optimizer afterwards: it keeps its state for the
    parts only. It must update each number by itself, as AdamW does and Muon does not.
    For a model that is too large for one device; otherwise :func:`replicated` is
    faster. Source: FSDP2, Zhao et al. 2023.
    """
    if size() == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    kind = next(model.parameters()).device.type
    mesh = init_device_mesh(kind, (size(),))
    for layer in (*model.blocks, model):
        fully_shard(layer, mesh=mesh)
    for method in ("embed", "contextualize", "logits", "token_vectors"):
        register_fsdp_forward_method(model, method)  # they are called without forward
    return model


def whole(x: T) -> T:
    """Return a tensor that :func:`sharded` divided as one; anything else as it is."""
    return x.full_tensor() if _is_divided(x) else x


def held(x: Tensor) -> Tensor:
    """Return the part of a divided tensor that this process holds, in its memory."""
    return x.to_local() if _is_divided(x) else x


def like(x: T, own: Tensor) -> T:
    """Return `x`, divided among processes as `own` is if both have one shape."""
    if not (_is_divided(own) and isinstance(x, Tensor) and x.shape == own.shape):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(own.device), own.device_mesh, own.placements)


def _is_divided(x: object) -> bool:
    return hasattr(x, "full_tensor")  # without the import, which takes a second


def _on_wire(x: Tensor) -> Tensor:
    """Return `x` where the processes talk: gloo reads no GPU."""
    x = x.cpu() if dist.get_backend() == "gloo" else x
    return x.contiguous()


def _reduced(x: Tensor, operation: dist.ReduceOp) -> Tensor:
    sent = _on_wire(x.clone())
    dist.all_reduce(sent, operation)
    return sent.to(x.device)


def _received(x: Tensor) -> list[Tensor]:
    """Return the `x` of every process, in their order."""
    sent = _on_wire(x)
    received = [torch.empty_like(sent) for _ in range(size())]
    dist.all_gather(received, sent)
    return [tensor.to(x.device) for tensor in received]


class _Gathered(torch.autograd.Function):
    """torch's own functions with a gradient move from version to version."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.cat(_received(x))

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        sent = [*_on_wire(gradient).chunk(size())]
        own = torch.empty_like(sent[0])
        dist.reduce_scatter(own, sent)
        return own.to(gradient.device)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, weight: Tensor) -> Tensor:
        total = _reduced(torch.stack([x * weight, weight]), dist.ReduceOp.SUM)
        ctx.share = size() * weight / total[1]
        return total[0] / total[1]

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.share, None


class _GlobalBatchNorm(_BatchNorm):
    """Batch norm with the statistics of the rows of all processes."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, variance = _Normalized.apply(x, self.weight, self.bias, self.eps)
        n = size() * x.numel() // x.shape[1]
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
        return y


class _Normalized(torch.autograd.Function):
    """Torch's kernels for one process, with sums over all processes in between.

    The backward kernel is that of fixed statistics. What they add, as functions of x,
    is the mean of the gradient and its component along the normalized x: the two
    gradients of bias and weight, which therefore are summed over all processes.
    """

    @staticmethod
    def forward(
        ctx: object, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        _, mean, scale = torch.native_batch_norm(
            x, None, None, None, None, True, 0.0, eps
        )
        every = torch.stack(_received(torch.stack([mean, scale**-2 - eps])))
        means, variances = every.unbind(dim=1)  # (W, channels) each
        mean = means.mean(dim=0)
        variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        y = F.batch_norm(x, mean, variance, weight, bias, eps=eps)
        return y, mean, variance

    @staticmethod
    def backward(ctx: object, of_y: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            of_y, x, weight, mean, variance, None, None, False, ctx.eps, [True] * 3
        )
        sums = _reduced(torch.stack([of_weight, of_bias]), dist.ReduceOp.SUM)
        n = size() * x.numel() // x.shape[1]
        slope, shift = sums * weight * (variance + ctx.eps).rsqrt() / n
        of_x -= F.batch_norm(x, mean, variance, slope, shift, eps=ctx.eps)
        return of_x, of_weight, of_bias, None
