"""Losses as pure functions.

B batch, N views, m representation, c channels, H and W height and width; T tokens,
V vocabulary.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fmkit._check import require


def reconstruction_loss(
    x_rebuilt: Float[Tensor, "B c H W"], x: Float[Tensor, "B c H W"]
) -> Float[Tensor, " B"]:
    r"""Squared error of a rebuilt picture: an l_pre(theta, x) of 14.1 for each picture.

    .. math:: \ell_\text{pre}(\theta, x^{(i)}) =
        \frac{1}{d} \lVert \text{rebuilt}^{(i)} - x^{(i)} \rVert^2

    with d = cHW. It is a loss of single examples, so L_pre is its mean over a batch or
    a data set. In squared units of `x`; the best constant picture, the mean of all,
    gives the mean variance of a pixel. Raises ``ValueError`` where shapes differ.
    Source: denoising autoencoders, Vincent et al. 2008.

    In the notes: pretraining loss, self-supervised loss.
    """
    alike = x_rebuilt.shape == x.shape
    require(alike, "x_rebuilt", f"have the shape {tuple(x.shape)}", x_rebuilt.shape)
    return (x_rebuilt.float() - x.float()).square().flatten(1).mean(dim=1)


def simclr_loss(
    phi_hat: Float[Tensor, "B m"], phi_tilde: Float[Tensor, "B m"]
) -> Float[Tensor, ""]:
    r"""SimCLR loss of the notes (14.2): row i of the two arguments is a positive pair.

    .. math:: -\sum_{i=1}^{B} \log
        \frac{\exp(\phi(\hat x^{(i)})^\top \phi(\tilde x^{(i)}))}
             {\sum_{j=1}^{B} \exp(\phi(\hat x^{(i)})^\top \phi(\tilde x^{(j)}))}

    Unlike :func:`nt_xent_loss` it is one-sided, has no temperature and does not
    normalize; unlike most code it *sums* over the batch. In nats; B log B when every
    view is alike. Raises ``ValueError`` for a batch of one.

    In the notes: SimCLR loss.
    """
    B = _pairs(phi_hat, phi_tilde)
    similarity = _products(phi_hat, phi_tilde)  # (B, B)
    positive = torch.arange(B, device=phi_hat.device)  # row i's partner is column i
    return F.cross_entropy(similarity, positive, reduction="sum")


def nt_xent_loss(
    phi_hat: Float[Tensor, "B m"], phi_tilde: Float[Tensor, "B m"], *, tau: float
) -> Float[Tensor, ""]:
    r"""NT-Xent: row i of the two arguments is a positive pair, all else is negative.

    .. math:: -\frac{1}{2B} \sum_{i=1}^{2B} \log
        \frac{\exp(z_i^\top z_{p(i)} / \tau)}{\sum_{j \ne i} \exp(z_i^\top z_j / \tau)}

    with z the 2B normalized views and p(i) the partner of i. Unlike
    :func:`simclr_loss` it is two-sided, also has the other views of its own side as
    negatives, and is a mean. In nats; log(2B - 1) when every view is alike. Raises
    ``ValueError`` for a batch of one and a temperature that is not above 0. Source:
    Chen et al. 2020.

    In the notes: footnote 3.
    """
    B = _pairs(phi_hat, phi_tilde)
    similarity = _similarity(torch.cat([phi_hat, phi_tilde]), tau)  # (2B, 2B)
    positive = torch.arange(2 * B, device=phi_hat.device).roll(B)
    return F.cross_entropy(similarity, positive)


def supcon_loss(
    phi: Float[Tensor, "N m"], labels: Int[Tensor, " N"], *, tau: float
) -> Float[Tensor, ""]:
    r"""Supervised contrastive loss: views with the same label are positive pairs.

    .. math:: -\frac{1}{|A|} \sum_{i \in A} \frac{1}{|P(i)|} \sum_{p \in P(i)} \log
        \frac{\exp(z_i^\top z_p / \tau)}{\sum_{j \ne i} \exp(z_i^\top z_j / \tau)}

    with z the normalized views, P(i) the others with i's label, and A the views that
    have such a one; two views of each example see to that all have. With a label of its
    own for each example it is :func:`nt_xent_loss`. In nats; log(N - 1) when every view
    is alike. Raises ``ValueError`` where no two views share a label, and for a
    temperature that is not above 0. Source: Khosla et al. 2020, their L_out.

    In the notes: supervised contrastive learning.
    """
    similarity = _similarity(phi, tau)  # (N, N)
    alike = labels[:, None] == labels[None, :]
    alike = alike.fill_diagonal_(False)
    count = alike.sum(dim=1)
    rule = "have two views with one label"
    require(bool(count.any()), "labels", rule, labels.tolist())
    # The diagonal is log 0: it is filled, since 0 times it would be NaN
    log_p = similarity.log_softmax(dim=1).masked_fill(~alike, 0.0)
    anchors = count > 0
    return -(log_p.sum(dim=1)[anchors] / count[anchors]).mean()


def next_token_loss(
    u: Float[Tensor, "B T V"], x: Int[Tensor, "B T"]
) -> Float[Tensor, ""]:
    r"""Negative log likelihood of the next word (14.8): u[:, t] are logits of x[:, t].

    .. math:: \frac{1}{T} \sum_{t=1}^{T} -\log p_\theta(x_t \mid x_1, \dots, x_{t-1}),
        \qquad p_\theta(\cdot \mid x_1, \dots, x_{t-1}) = \operatorname{softmax}(u_t)

    It is for the caller to see that u_t was made from x_0 .. x_{t-1}. Unlike the notes
    it is also a mean over the examples of a batch. In nats a token; log V for logits
    that are all alike. Raises ``ValueError`` where shapes differ.

    In the notes: (14.6), (14.8), cross-entropy.
    """
    rule = f"have the shape {tuple(u.shape[:2])}"
    require(x.shape == u.shape[:2], "x", rule, tuple(x.shape))
    return F.cross_entropy(_at_least_float32(u).flatten(0, 1), x.flatten())


def masked_token_loss(
    u: Float[Tensor, "B T V"], x: Int[Tensor, "B T"], masked: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    r"""Negative log likelihood of the words that were hidden from the model.

    .. math:: \frac{1}{|M|} \sum_{t \in M} -\log \operatorname{softmax}(u_t)_{x_t}

    with M the masked places of the whole batch and x the words as they were. Unlike
    :func:`next_token_loss` it is no likelihood of a text: words that are hidden at once
    are guessed independently. In nats a masked token; log V for logits that are all
    alike. Raises ``ValueError`` where nothing is masked. Source: Devlin et al. 2019.

    In the notes: masked language model.
    """
    require(bool(masked.any()), "masked", "mask at least 1 token", int(masked.sum()))
    return F.cross_entropy(_at_least_float32(u[masked]), x[masked])


def _similarity(phi: Float[Tensor, "N m"], tau: float) -> Float[Tensor, "N N"]:
    """Cosines over the temperature; a view is infinitely unlike itself."""
    require(tau > 0, "tau", "be above 0", tau)
    z = F.normalize(_at_least_float32(phi), dim=1)
    return (_products(z, z) / tau).fill_diagonal_(-torch.inf)


def _products(a: Float[Tensor, "N m"], b: Float[Tensor, "M m"]) -> Float[Tensor, "N M"]:
    """Inner products in at least float32, also inside autocast.

    There a product is of lower precision whatever comes in, and over a small
    temperature its rounding becomes whole nats.
    """
    with torch.autocast(a.device.type, enabled=False):
        return _at_least_float32(a) @ _at_least_float32(b).T


def _pairs(phi_hat: Tensor, phi_tilde: Tensor) -> int:
    """How many positive pairs there are, once that is known to be enough."""
    B = len(phi_hat)
    require(B >= 2, "phi_hat", "have at least 2 rows (one has no negatives)", B)
    same = phi_hat.shape == phi_tilde.shape
    require(
        same, "phi_tilde", f"have the shape {tuple(phi_hat.shape)}", phi_tilde.shape
    )
    return B


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
