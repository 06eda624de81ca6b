"""Checks for the exercises on 14.1 and 14.2. In shapes: B batch, m representation."""

import torch
import torch.nn.functional as F

from fmkit.exercises._compare import compare
from fmkit.losses import simclr_loss


def _simclr(answer):
    """The SimCLR loss of the notes: ``answer(phi_hat, phi_tilde)``, both B m."""
    rng = torch.Generator().manual_seed(0)
    phi_hat, phi_tilde = torch.randn(2, 5, 3, generator=rng)
    scores = phi_hat @ phi_tilde.T  # (B, B)
    without = scores.masked_fill(torch.eye(5).bool(), -torch.inf).logsumexp(1)
    unit = F.normalize(phi_hat) @ F.normalize(phi_tilde).T
    partner = torch.arange(5)
    right = simclr_loss(phi_hat, phi_tilde)
    compare(
        answer(phi_hat, phi_tilde),
        right,
        {
            "Look at the sign: a loss of -log p is never negative.": -right,
            "Look at the sum of the notes: is it divided by anything?": right / 5,
            "Look at the denominator: is j = i in its sum?": (
                without - scores.diagonal()
            ).sum(),
            "Look at the denominator: over which argument does j run?": (
                F.cross_entropy(scores.T, partner, reduction="sum")
            ),
            "Look at what the notes multiply: are the vectors changed before?": (
                F.cross_entropy(unit, partner, reduction="sum")
            ),
        },
    )


VISION = {"simclr": _simclr}
