"""Adaptation of a pretrained phi to a task (14.1): frozen representations, finetuning.

An example is a picture, or the ids of a text: what `prepare` of the model takes. n
examples, m representation, k classes. The linear probe itself is in fmkit.probe.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fmkit import runtime
from fmkit._check import require
from fmkit.probe import Probe
from fmkit.progress import progress
from fmkit.train import minibatches, train, warmup_cosine


class Predictor(nn.Module):
    r"""The prediction :math:`w^\top \phi_\theta(x)` of 14.1: phi, then its head.

    In the notes: linear head.
    """

    def __init__(self, phi: nn.Module, head: nn.Linear):
        super().__init__()
        self.phi, self.head = phi, head

    def prepare(self, examples: Shaped[Tensor, "B ..."]) -> Tensor:
        return self.phi.prepare(examples)

    def forward(self, x: Tensor) -> Float[Tensor, "B k"]:
        return self.head(self.phi(x))


def frozen_outputs(
    model: nn.Module, examples: Shaped[Tensor, "n ..."], *, label: str
) -> Float[Tensor, "n m"]:
    """What a frozen model gives for each example: phi(x), or a predictor's logits.

    Frozen: in eval mode and without gradients. Batch size, layout and precision are
    the runtime's for the device of the examples; the result is float32. Raises
    ``AssertionError`` should a parameter or a buffer change on the way, and leaves the
    model in the mode in which it came. `label` names the progress bar.
    """
    was_training = model.training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    device = examples.device
    batches = examples.split(runtime.batch_size_for_inference(device))
    rows = []
    with torch.no_grad(), runtime.autocast(device):
        for batch in progress(batches, label=label):
            rows.append(model(model.prepare(batch)).float())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} of a frozen model changed"
    model.train(was_training)
    return torch.cat(rows)


def random_head(m: int, k: int, *, generator: torch.Generator) -> nn.Linear:
    """w of (14.3): k random vectors of R^m, entries from N(0, 1/m), and a bias of 0.

    Unlike the notes it has a bias, and one vector a class in place of a single one.

    In the notes: (14.3).
    """
    require(m >= 1, "m", "be at least 1", m)
    head = nn.Linear(m, k)
    with torch.no_grad():
        head.weight.copy_(torch.randn(k, m, generator=generator) / m**0.5)
        head.bias.zero_()
    return head


def probe_head(probe: Probe) -> nn.Linear:
    """The w of a linear probe, as LP-FT starts from it (Kumar et al. 2022)."""
    head = nn.Linear(probe.weight.shape[1], probe.weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(probe.weight)
        head.bias.copy_(probe.bias)
    return head


def finetune(
    phi: nn.Module,
    head: nn.Linear,
    examples: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    task_loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Predictor:
    r"""Finetuning, (14.2) to (14.4): w and theta trained from `head` and from `phi`.

    .. math:: \min_{w, \theta} \frac{1}{n_\text{task}} \sum_{i=1}^{n_\text{task}}
        \ell_\text{task}(y^{(i)}, w^\top \phi_\theta(x^{(i)}))

    Both are copied, so the pretrained model stays as it is; the result is in eval mode.
    Of theta only what has ``requires_grad`` is trained: a block, low-rank updates.
    A `phi` given in eval mode keeps the batch norm statistics of pretraining, one in
    train mode learns its own (for an untrained one: training from scratch). AdamW with
    weight decay 0.01, a tenth of the steps warm-up, then cosine. Unlike the notes it
    minimizes by batches, for `steps` steps, not to the minimum. Raises what
    :func:`fmkit.train.train` raises.

    In the notes: finetuning, (14.2), (14.4), finetuning a language model.
    """
    model = copy.deepcopy(Predictor(phi, head)).to(examples.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)

    def loss_of(batch: Tensor) -> Tensor:
        return task_loss(model(model.prepare(examples[batch])), targets[batch])

    batches = minibatches(len(examples), batch_size=batch_size, generator=generator)
    schedule = warmup_cosine(steps=steps, warmup_steps=steps // 10)
    records = train(
        loss_of,
        batches,
        optimizer,
        steps=steps,
        schedule=schedule,
        buffers=model.buffers(),
    )
    for _ in progress(records, label="finetuning", total=steps):
        pass
    return model.eval()
