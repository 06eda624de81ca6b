"""Losses of pretraining as pure functions.

Axes: B batch, N views, m representation, c channels, H and W height and width; T
tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from fmkit import runtime
from fmkit._check import Refused, require
from fmkit._tensors import as_int64, require_bools, require_shape

NOT_COUNTED = -100  # in place of a token that a mean leaves out
NO_TOKEN = -(2**31)  # as what cross_entropy leaves out, so that it leaves out nothing


def reconstruction_loss(
    x_rebuilt: Float[Tensor, "B c H W"], x: Float[Tensor, "B c H W"]
) -> Float[Tensor, " B"]:
    r"""Return the squared error of each rebuilt image: an l_pre(theta, x) of 14.1.

    .. math:: \ell_\text{pre}(\theta, x^{(i)}) =
        \frac{1}{d} \lVert \text{rebuilt}^{(i)} - x^{(i)} \rVert^2

    with d = cHW. It is a loss of single examples, so L_pre is its mean over a batch or
    a data set. In squared units of `x`; the best constant image, the mean of all,
    gives the mean variance of a pixel. Raises ``ValueError`` if the shapes differ.
    Source: denoising autoencoders, Vincent et al. 2008.

    In the notes: pretraining loss, self-supervised loss.
    """
    require_shape("x", x, "B", "c", "H", "W")
    require_shape("x_rebuilt", x_rebuilt, *x.shape)
    return (x_rebuilt.float() - x.float()).square().flatten(1).mean(dim=1)


def simclr_loss(
    phi_hat: Float[Tensor, "B m"], phi_tilde: Float[Tensor, "B m"]
) -> Float[Tensor, ""]:
    r"""Return the SimCLR loss of the notes (14.2); rows i are a positive pair.

    .. math:: -\sum_{i=1}^{B} \log
        \frac{\exp(\phi(\hat x^{(i)})^\top \phi(\tilde x^{(i)}))}
             {\sum_{j=1}^{B} \exp(\phi(\hat x^{(i)})^\top \phi(\tilde x^{(j)}))}

    Unlike :func:`nt_xent_loss` it is one-sided, has no temperature and does not
    normalize. Unlike most code it *sums* over the batch. In nats; B log B if all views
    are equal. Raises ``ValueError`` for a batch of one, because it has no negatives.

    In the notes: SimCLR loss.
    """
    B = _pairs(phi_hat, phi_tilde)
    similarity = _products(phi_hat, phi_tilde)  # (B, B)
    positive = torch.arange(B, device=phi_hat.device)  # row i's partner is column i
    return F.cross_entropy(similarity, positive, reduction="sum")


def nt_xent_loss(
    phi_hat: Float[Tensor, "B m"], phi_tilde: Float[Tensor, "B m"], *, tau: float
) -> Float[Tensor, ""]:
    r"""Return NT-Xent; rows i are a positive pair, all other pairs are negative.

    .. math:: -\frac{1}{2B} \sum_{i=1}^{2B} \log
        \frac{\exp(z_i^\top z_{p(i)} / \tau)}{\sum_{j \ne i} \exp(z_i^\top z_j / \tau)}

    with z the 2B normalized representations and p(i) the partner of i. Unlike
    :func:`simclr_loss` it is two-sided, takes the other views of the same side as
    negatives too, and is a mean. In nats; log(2B - 1) if all views are equal. Raises
    ``ValueError`` for a batch of one, and if `tau` is not above 0. Source: Chen et al.
    2020.

    In the notes: footnote 3.
    """
    B = _pairs(phi_hat, phi_tilde)
    similarity = _similarity(torch.cat([phi_hat, phi_tilde]), tau)  # (2B, 2B)
    positive = torch.arange(2 * B, device=phi_hat.device).roll(B)
    return F.cross_entropy(similarity, positive)


def supcon_loss(
    phi: Float[Tensor, "N m"], labels: Integer[Tensor, " N"], *, tau: float
) -> Float[Tensor, ""]:
    r"""Return the supervised contrastive loss; views of one label are positive pairs.

    .. math:: -\frac{1}{|A|} \sum_{i \in A} \frac{1}{|P(i)|} \sum_{p \in P(i)} \log
        \frac{\exp(z_i^\top z_p / \tau)}{\sum_{j \ne i} \exp(z_i^\top z_j / \tau)}

    with z the normalized representations, P(i) the other views with the label of i,
    and A the views for which P(i) is not empty: all of them, if each example has two
    views. If each example has a label of its own, it is :func:`nt_xent_loss`. In nats;
    log(N - 1) if all views are equal. Raises ``ValueError`` if `tau` is not above 0, if
    there is not one label for each view, and if no two views share a label. On a GPU
    the last check would make the host wait, so the loss is NaN there. Source: Khosla et
    al. 2020, their L_out.

    In the notes: supervised contrastive learning.
    """
    similarity = _similarity(phi, tau)  # (N, N)
    labels = as_int64("labels", labels, len(phi))
    positive = labels[:, None] == labels[None, :]
    positive = positive.fill_diagonal_(False)
    count = positive.sum(dim=1)
    if runtime.on_host(count) and not count.any():
        raise Refused("labels must have two views of one label, but all differ.")
    # Fill the diagonal, which is log 0, because 0 times it would be NaN
    log_p = similarity.log_softmax(dim=1).masked_fill(~positive, 0.0)
    # 0 for a view outside A: to select the others would need their number
    of_anchor = log_p.sum(dim=1) / count.clamp(min=1)
    return -(of_anchor.sum() / (count > 0).sum())


def next_token_loss(
    u: Float[Tensor, "B T V"], x: Integer[Tensor, "B T"]
) -> Float[Tensor, ""]:
    r"""Return the negative log-likelihood of the next word (14.8), a mean.

    .. math:: \frac{1}{T} \sum_{t=1}^{T} -\log p_\theta(x_t \mid x_1, \dots, x_{t-1}),
        \qquad p_\theta(\cdot \mid x_1, \dots, x_{t-1}) = \operatorname{softmax}(u_t)

    u[:, t] are the logits of x[:, t]; the caller must compute them from x_0 .. x_{t-1}
    only. Unlike the notes it is also a mean over the examples of a batch. In nats per
    token; log V if all logits are equal. Raises ``ValueError`` if the shapes differ.

    In the notes: (14.6), (14.8), cross-entropy.
    """
    require_shape("u", u, "B", "T", "V")
    x = as_int64("x", x, *u.shape[:2])
    u = _at_least_float32(u).flatten(0, 1)
    return F.cross_entropy(u, x.flatten(), ignore_index=NO_TOKEN)


def masked_token_loss(
    u: Float[Tensor, "B T V"], x: Integer[Tensor, "B T"], masked: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    r"""Return the negative log-likelihood of the words that were masked, a mean.

    .. math:: \frac{1}{|M|} \sum_{t \in M} -\log \operatorname{softmax}(u_t)_{x_t}

    with M the masked positions of the whole batch and x the original words. Unlike
    :func:`next_token_loss` it is not the likelihood of a text, because words that are
    masked together are predicted independently. In nats per masked token; log V if all
    logits are equal. Raises ``ValueError`` if the shapes differ, and if nothing is
    masked; on a GPU, where this check would make the host wait, the loss is NaN
    instead. Source: Devlin et al. 2019.

    In the notes: masked language model.
    """
    require_shape("u", u, "B", "T", "V")
    x = as_int64("x", x, *u.shape[:2])
    require_bools("masked", masked, *u.shape[:2])
    if runtime.on_host(masked):
        require(bool(masked.any()), "masked", "mask at least 1 token", 0)
        u, x = u[masked], x[masked]
    else:  # to select rows would need their number
        u, x = u.flatten(0, 1), x.masked_fill(~masked, NOT_COUNTED).flatten()
    return F.cross_entropy(_at_least_float32(u), x, ignore_index=NOT_COUNTED)


def _similarity(phi: Float[Tensor, "N m"], tau: float) -> Float[Tensor, "N N"]:
    """Return cosines divided by the temperature, and -inf for a view with itself."""
    require_shape("phi", phi, "N", "m")
    require(tau > 0, "tau", "be above 0", tau)
    z = F.normalize(_at_least_float32(phi), dim=1)
    return (_products(z, z) / tau).fill_diagonal_(-torch.inf)


def _products(a: Float[Tensor, "N m"], b: Float[Tensor, "M m"]) -> Float[Tensor, "N M"]:
    """Return all inner products in at least float32, also inside autocast.

    Autocast would lower the precision whatever the inputs are, and divided by a small
    temperature the rounding becomes whole nats.
    """
    precision = torch.promote_types(a.dtype, b.dtype)
    precision = torch.promote_types(precision, torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(precision) @ b.to(precision).T


def _pairs(phi_hat: Tensor, phi_tilde: Tensor) -> int:
    """Return the number of positive pairs. Raises ``ValueError`` if it is below 2."""
    require_shape("phi_hat", phi_hat, "B", "m")
    B = len(phi_hat)
    require(B >= 2, "phi_hat", "have at least 2 rows (one has no negatives)", B)
    require_shape("phi_tilde", phi_tilde, B, phi_hat.shape[1])
    return B


def _at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; leave float32 and float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
