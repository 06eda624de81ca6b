"""Adaptation of a pretrained phi to a task (14.1): frozen representations, finetuning.

An example is an image, or the token ids of a text: whatever the method ``prepare`` of
the model takes. Axes: n examples, m representation, k classes. The linear probe itself
is in :mod:`fmkit.probe`.
"""

import contextlib
import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, Shaped
from torch import Tensor, nn

from fmkit import runtime
from fmkit._check import require
from fmkit._tensors import as_int64, require_below
from fmkit.probe import Probe
from fmkit.progress import progress
from fmkit.train import Records, minibatches, train, warmup_cosine


class Predictor(nn.Module):
    r"""The prediction :math:`w^\top \phi_\theta(x)` of 14.1: phi, then its head.

    `losses` has the loss of each step of :func:`finetune`, before that step.

    In the notes: linear head.
    """

    def __init__(self, phi: nn.Module, head: nn.Module):
        super().__init__()
        self.phi = phi
        self.head = head
        self.losses: list[float] = []

    def prepare(self, examples: Shaped[Tensor, "B ..."]) -> Tensor:
        """Turn examples into the input of `forward`, as phi does."""
        return self.phi.prepare(examples)

    def forward(self, x: Tensor) -> Float[Tensor, "B k"]:
        """Compute the logits u of prepared examples."""
        return self.head(self.phi(x))


@runtime.exact()
def frozen_outputs(
    model: nn.Module,
    examples: Shaped[Tensor, "n ..."],
    *,
    bar: str = "frozen outputs",
) -> Float[Tensor, "n m"]:
    """Compute the output of a frozen model for each example: phi(x), or logits.

    Frozen means in eval mode and without gradients. Afterwards the model is in the
    mode that it was in before. The batch size is that of :mod:`fmkit.runtime` for the
    device of the examples. Precision is the model's on every device, also inside
    autocast; the result is float32. A part of the model with a method ``frozen`` is
    inside that context, where it may keep what it computes from its weights. `bar` is
    the text of the progress bar. Raises ``AssertionError`` if a parameter or a buffer
    changed.
    """
    was_training = model.training
    # A write raises the version of a parameter, so none is copied. The kernel of batch
    # norm does not raise that of its buffers
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    versions = {name: p._version for name, p in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.eval()
    batches = examples.split(runtime.batch_size_for_inference(examples.device))
    rows = []
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for part in model.modules():
            if callable(getattr(part, "frozen", None)):  # not a flag of that name
                stack.enter_context(part.frozen())
        for batch in progress(batches, bar=bar):
            rows.append(model(model.prepare(batch)).float())
    for name, p in model.named_parameters():
        before = parameters[name].data_ptr(), versions[name]
        same = (p.data_ptr(), p._version) == before
        assert same, f"{name} of a frozen model changed"
    for name, buffer in model.named_buffers():
        same = torch.equal(buffer, buffers[name])
        assert same, f"{name} of a frozen model changed"
    model.train(was_training)
    return torch.cat(rows)


def frozen_outputs_at(
    model: nn.Module,
    examples: Shaped[Tensor, "n ..."],
    rows: Integer[Tensor, " k"],
    *,
    bar: str = "frozen outputs",
) -> Float[Tensor, "n m"]:
    """Compute :func:`frozen_outputs` of some rows of `examples`; the others are NaN.

    For a network that is slow: only examples whose label is drawn need its output. A
    probe refuses a row that is NaN. Raises ``ValueError`` if one of `rows` is not from
    0 to n - 1.
    """
    rows = as_int64("rows", rows, "k")
    require_below("rows", rows, len(examples))
    outputs = frozen_outputs(model, examples[rows], bar=bar)
    unknown = outputs.new_full((len(examples), *outputs.shape[1:]), torch.nan)
    return unknown.index_copy(0, rows, outputs)


def random_head(m: int, k: int, *, generator: torch.Generator) -> nn.Linear:
    """Draw w of (14.3): k vectors of R^m with entries from N(0, 1/m), and a bias of 0.

    Unlike the notes it has a bias, and one vector for each class instead of a single
    one. Raises ``ValueError`` if `m` or `k` is below 1.

    In the notes: (14.3).
    """
    require(m >= 1, "m", "be at least 1", m)
    require(k >= 1, "k", "be at least 1", k)
    head = nn.Linear(m, k)
    with torch.no_grad():
        head.weight.copy_(torch.randn(k, m, generator=generator) / m**0.5)
        head.bias.zero_()
    return head


def probe_head(probe: Probe) -> nn.Linear:
    """Make a head of the w of a linear probe: start of LP-FT (Kumar et al. 2022)."""
    head = nn.Linear(probe.weight.shape[1], probe.weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(probe.weight)
        head.bias.copy_(probe.bias)
    return head


def finetuning(
    model: Predictor,
    examples: Shaped[Tensor, "n ..."],
    labels: Integer[Tensor, " n"],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
) -> Records:
    r"""Train w and theta of `model` in place, (14.2) to (14.4); yield a record a step.

    .. math:: \min_{w, \theta} \frac{1}{n_\text{task}} \sum_{i=1}^{n_\text{task}}
        \ell_\text{task}(y^{(i)}, w^\top \phi_\theta(x^{(i)}))

    with cross-entropy as the loss of the task, in nats. Each step is taken when its
    record is asked for, and `model` can be looked at in between. Only parameters with
    ``requires_grad`` are trained: everything, one block, or low-rank updates.

    `model` stays in the mode it is in, and this decides about batch norm: if its phi
    is in eval mode, the statistics of pretraining stay; if it is in train mode, phi
    learns new ones (for an untrained phi: training from scratch).

    The optimizer is AdamW with weight decay 0.01; the learning rate rises during a
    tenth of the steps and then falls as a cosine. Unlike the notes, it minimizes on
    minibatches, for `steps` steps and not to the minimum. Raises ``ValueError`` if
    there is not one label from 0 to k - 1 for each example, and the errors of
    :func:`fmkit.train.train`.

    In the notes: finetuning, (14.2), (14.4), finetuning a language model.
    """
    # Checked before the first step, because a step must not wait for a GPU
    labels = as_int64("labels", labels, len(examples))
    require_below("labels", labels, model.head.out_features)
    trained = [p for p in model.parameters() if p.requires_grad]
    options = {"lr": learning_rate, "fused": runtime.fused(examples.device)}
    optimizer = torch.optim.AdamW(trained, **options)

    def loss_of(batch: Tensor) -> Tensor:
        u = model(model.prepare(examples[batch]))
        return F.cross_entropy(u, labels[batch])

    batches = minibatches(len(examples), batch_size=batch_size, generator=generator)
    schedule = warmup_cosine(0.1)
    return train(
        loss_of, batches, optimizer, modules=[model], steps=steps, schedule=schedule
    )


def finetune(
    phi: nn.Module,
    head: nn.Linear,
    examples: Shaped[Tensor, "n ..."],
    labels: Integer[Tensor, " n"],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
) -> Predictor:
    """Finetune copies of `phi` and `head` with :func:`finetuning`, behind a bar.

    The pretrained model stays as it is. The result is in eval mode and has the loss of
    each step in its `losses`.

    In the notes: finetuning, (14.2), (14.4), finetuning a language model.
    """
    model = copy.deepcopy(Predictor(phi, head)).to(examples.device)
    options = {"steps": steps, "batch_size": batch_size, "generator": generator}
    options |= {"learning_rate": learning_rate}
    records = progress(finetuning(model, examples, labels, **options), bar="finetuning")
    # All losses are read at the end, because reading one waits for the device
    model.losses = [record.loss for record in [*records]]
    return model.eval()
