"""Draw a few labelled examples of each class, for a probe or for finetuning.

Axes: n examples, k drawn examples.
"""

import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from fmkit._check import require
from fmkit._tensors import as_int64


def few_labels(
    labels: Integer[Tensor, " n"], *, per_class: int, generator: torch.Generator
) -> Int64[Tensor, " k"]:
    """Draw `per_class` examples of each class at random; return their positions.

    The first position of each class comes first, then the second of each, and so on.
    Draws are nested: with the same seed, the positions for fewer examples are the
    beginning of those for more. Raises ValueError if there is no label, and if
    `per_class` is less than 1 or more than the smallest class has.

    In the notes: few-shot learning.
    """
    labels = as_int64("labels", labels, "n")
    require(len(labels) >= 1, "labels", "hold at least 1 example", len(labels))
    names, counts = labels.unique(return_counts=True)
    rule = f"be at least 1, so n_task at least {len(names)}"
    require(per_class >= 1, "per_class", rule, per_class)
    fewest = int(counts.min())
    rule = f"be at most {fewest}, the examples of the smallest class"
    require(per_class <= fewest, "per_class", rule, per_class)
    # The whole order is drawn, so that its beginning does not depend on per_class.
    order = torch.randperm(len(labels), generator=generator, device=generator.device)
    order = order.to(labels.device)
    drawn = [order[labels[order] == name][:per_class] for name in names]
    return torch.stack(drawn, dim=1).flatten()
