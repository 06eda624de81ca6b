"""phi of a text: pooled as written, and blind to padding."""

from dataclasses import replace

import pytest
import torch
from support.models import redrawn

from fmkit.adapt import frozen_outputs
from fmkit.data.tokens import PADDING, padded
from fmkit.models.bert import Bert, BertConfig
from fmkit.models.encoder import Encoder, LayeredEncoder, TextEncoder
from fmkit.models.pooling import Pooled, first_token, last_token, mean_of_tokens
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.models.transformer import Transformer, TransformerConfig

POOLS = (last_token, first_token, mean_of_tokens)
CAUSAL = TransformerConfig(
    vocabulary=11, context=9, width=8, layers=2, heads=2, kv_heads=1, hidden=6
)
BERT = BertConfig(
    vocabulary=11, context=9, types=2, width=8, layers=2, heads=2, hidden=6
)
TEXTS = [[0, 5, 3], [7], [2, 9, 9, 1, 4, 10, 6], [0, 8, 8, 2]]


class Recurrent(torch.nn.Module):
    """A third text encoder, which no other file knows: a GRU, from left to right."""

    width = 8

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(11, 8)
        self.gru = torch.nn.GRU(8, 8, batch_first=True)

    def token_vectors(self, tokens):
        return self.gru(self.words(tokens.clamp(min=0)))[0]


@pytest.fixture(params=["causal", "masked", "bert", "recurrent"])
def encoder(request, rng):
    if request.param == "bert":
        return redrawn(Bert(BERT).double().eval(), rng)
    if request.param == "recurrent":
        return redrawn(Recurrent().double().eval(), rng)
    config = replace(CAUSAL, causal=request.param == "causal")
    return redrawn(Transformer(config).double().eval(), rng)


def vectors(encoder, ids):
    """Of one text, without padding."""
    one = torch.tensor([ids])
    if isinstance(encoder, Transformer):
        return encoder.contextualize(encoder.embed(one))[0]
    return encoder.token_vectors(one)[0]


@torch.no_grad()
def test_summaries_are_of_single_texts(encoder):
    """In the notes: representation of a text."""
    tokens = padded(TEXTS, limit=9)
    last, first, mean = (Pooled(encoder, pool)(tokens) for pool in POOLS)
    for i, ids in enumerate(TEXTS):
        c = vectors(encoder, ids)
        options = {"rtol": 1e-10, "atol": 1e-12}
        torch.testing.assert_close(last[i], c[len(ids) - 1], **options)
        torch.testing.assert_close(first[i], c[0], **options)
        total = sum(c[t] for t in range(len(ids)))
        torch.testing.assert_close(mean[i], total / len(ids), **options)


@pytest.mark.parametrize("pool", POOLS)
@torch.no_grad()
def test_padding_changes_nothing(encoder, pool):
    phi = Pooled(encoder, pool)
    tokens = padded(TEXTS, limit=9)
    wide = torch.nn.functional.pad(tokens, (0, 2), value=PADDING)
    torch.testing.assert_close(phi(wide), phi(tokens), rtol=1e-10, atol=1e-12)
    assert torch.equal(phi.prepare(wide), tokens)


def test_gradients_do_not_come_from_padding(encoder):
    phi = Pooled(encoder, mean_of_tokens)
    found = []
    for tokens in (padded(TEXTS[:1], limit=9), padded(TEXTS, limit=9)):
        encoder.zero_grad()
        phi(tokens)[0].sum().backward()
        # An encoder's unembedding has none
        found.append([p.grad for p in encoder.parameters() if p.grad is not None])
    for alone, beside in zip(*found, strict=True):
        torch.testing.assert_close(alone, beside, rtol=1e-9, atol=1e-11)


def test_frozen_outputs_of_texts(encoder):
    """In batches of 32, the last of which holds short texts only."""
    encoder.float()
    phi = Pooled(encoder, mean_of_tokens)
    texts = [TEXTS[i % 3] for i in range(34)] + [TEXTS[1]] * 6
    found = frozen_outputs(phi, padded(texts, limit=9))
    assert found.shape == (40, phi.m)
    for i in (0, 2, 31, 39):
        alone = vectors(encoder, texts[i]).mean(dim=0)
        torch.testing.assert_close(found[i], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_the_encoder_s(encoder, training):
    encoder.float().train(training)
    frozen_outputs(Pooled(encoder, last_token), padded(TEXTS, limit=9))
    assert encoder.training == training


def test_x_0_of_a_causal_model_sees_no_text(rng):
    encoder = redrawn(Transformer(CAUSAL).double().eval(), rng)
    first = Pooled(encoder, first_token)(padded([[0, 5, 3], [0, 8]], limit=9))
    torch.testing.assert_close(first[0], first[1], rtol=0, atol=1e-12)


def test_encoders_have_what_the_protocols_say(encoder):
    assert isinstance(encoder, TextEncoder)
    assert isinstance(Pooled(encoder, last_token), Encoder)
    assert not isinstance(encoder, Encoder)
    images = ResNet(ResNetConfig())
    assert isinstance(images, LayeredEncoder)
    assert not isinstance(Pooled(encoder, last_token), LayeredEncoder)


@pytest.mark.parametrize("pool", POOLS)
def test_a_step_never_waits_for_a_device(encoder, pool):
    """On a device without values ``.item()`` and branches on them are errors."""
    phi = Pooled(encoder, pool).to("meta")
    tokens = torch.zeros(4, 7, dtype=torch.long, device="meta")
    phi(phi.prepare(tokens)).square().sum().backward()


def test_a_token_after_padding_is_an_error(encoder):
    tokens = torch.tensor([[4, PADDING, 3], [1, 2, PADDING]])
    with pytest.raises(ValueError, match=r"^tokens .*padding only at the end.*1"):
        Pooled(encoder, mean_of_tokens).prepare(tokens)


def test_an_empty_text_is_an_error(encoder):
    tokens = torch.tensor([[4, 2], [PADDING, 3], [1, PADDING]])
    with pytest.raises(ValueError, match=r"^tokens .*token in every row.*1"):
        Pooled(encoder, mean_of_tokens).prepare(tokens)
