"""BERT's encoder, and MiniLM: sentences as points.

all-MiniLM-L6-v2 has BERT's shape, but it is not a plain masked language model. Its
training ended with a contrastive loss on a billion pairs of sentences, with the other
pairs of a batch as negatives. That is the idea of 14.2 on text: phi maps a sentence and
its partner to neighbouring points. B batch, T tokens, V vocabulary, d width, h heads, w
width of a head.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from fmkit import runtime
from fmkit._check import Refused, one_line, require
from fmkit._reading import check_tensors, open_tensors, read_object
from fmkit.data.tokens import PADDING, open_tokenizer
from fmkit.models.language_model import LanguageModel

# From sentence_bert_config.json, both special tokens counted; it was trained on 128
MINILM_TOKENS = 256
# Entries of config.json that have one value here, which is also that of a missing entry
COMPUTED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
# In MiniLM's file, but not needed for a mean over tokens
UNUSED = {"embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"}


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Shape of a ``Bert``; the names in ``config.json`` are in brackets."""

    vocabulary: int  # V [vocab_size]
    context: int  # longest text, in tokens [max_position_embeddings]
    types: int  # first text, second text of a pair [type_vocab_size]
    width: int  # d [hidden_size]
    layers: int  # [num_hidden_layers]
    heads: int  # h [num_attention_heads]
    hidden: int  # width inside an MLP [intermediate_size]
    norm_epsilon: float = 1e-12  # [layer_norm_eps]

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "types", "layers", "heads", "hidden"):
            require(
                getattr(self, name) >= 1, name, "be at least 1", getattr(self, name)
            )
        fits = self.width >= 1 and self.width % self.heads == 0
        rule = f"be a multiple of the heads ({self.heads})"
        require(fits, "width", rule, self.width)


class Attention(nn.Module):
    """Attention of every token to all real tokens of its text, before and after it."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.h = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(
        self, x: Float[Tensor, "B T d"], mask: Bool[Tensor, "B 1 1 T"] | None
    ) -> Float[Tensor, "B T d"]:
        heads = [
            part(x).unflatten(2, (self.h, -1)).transpose(1, 2)  # (B, h, T, w)
            for part in (self.query, self.key, self.value)
        ]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention, then an MLP with the exact GELU; each is added to its input.

    Unlike the blocks of :mod:`fmkit.models.transformer` it normalizes after the sum, as
    Vaswani et al. 2017 did.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = Attention(config)
        self.norm_1 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.norm_2 = nn.LayerNorm(config.width, eps=config.norm_epsilon)

    def forward(
        self, x: Float[Tensor, "B T d"], mask: Bool[Tensor, "B 1 1 T"] | None
    ) -> Float[Tensor, "B T d"]:
        x = self.norm_1(x + self.attention(x, mask))
        return self.norm_2(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    """The encoder of Devlin et al. 2019: a vector for every token, from both sides.

    Unlike the paper's it has no dropout and no pooler, because it is used and not
    pretrained here, and because a text is represented by the mean of its tokens. Every
    token belongs to the first text of a pair.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.types = nn.Embedding(config.types, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    @property
    def width(self) -> int:
        """d, the length of a token's vector."""
        return self.config.width

    def token_vectors(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T d"]:
        """Compute the hidden states after the last layer; padding ends a text.

        See :class:`fmkit.models.encoder.TextEncoder`. Every row holds a token. Raises
        ``ValueError`` if there are more tokens than the context.
        """
        T, context = tokens.shape[1], self.config.context
        rule = f"be at most the context ({context})"
        require(context >= T, "the number of tokens", rule, T)
        real = tokens != PADDING
        words = self.words(tokens.clamp(min=0))
        x = self.norm(words + self.positions.weight[:T] + self.types.weight[0])
        # A mask that hides nothing costs time on a CPU; asking would stop a GPU
        nothing_hidden = runtime.on_host(real) and bool(real.all())
        mask = None if nothing_hidden else real[:, None, None]  # (B, 1, 1, T)
        for layer in self.layers:
            x = layer(x, mask)
        return x


def load_minilm(files: Mapping[str, str | Path]) -> LanguageModel:
    """Load phi of sentences and its tokenizer: the asset ``minilm-l6``, in eval mode.

    A sentence is the mean of its tokens' vectors, brought to length 1 (Reimers and
    Gurevych 2019): :func:`fmkit.models.pooling.mean_of_tokens`. Both special tokens
    count, and the tokenizer cuts a text after 256 tokens. Its start symbol is [CLS].

    `files` maps ``config.json``, ``model.safetensors`` and ``tokenizer.json`` to their
    paths. Raises ``ValueError``, with the tensor's name, if the tensors are not those
    that ``config.json`` describes, and if that file describes another model than a
    BERT: a RoBERTa has the same tensors, but other positions. Draws nothing from the
    global generator. Weights: all-MiniLM-L6-v2, the sentence-transformers project 2021,
    which started from MiniLM (Wang et al. 2020).
    """
    config = _read_config(Path(files["config.json"]))
    path = Path(files["model.safetensors"])
    stored = open_tensors(path, unused=UNUSED)
    with torch.device("meta"):  # shapes only: all weights come from the file
        model = Bert(config)
    theirs = {name: bert_name(name) for name in model.state_dict()}
    shapes = {theirs[n]: tuple(t.shape) for n, t in model.state_dict().items()}
    check_tensors(path, stored, shapes, source="config.json")
    weights = {name: stored[their_name].read() for name, their_name in theirs.items()}
    model.load_state_dict(weights, assign=True)
    tokenizer = _read_tokenizer(Path(files["tokenizer.json"]), config.vocabulary)
    return LanguageModel(model.eval(), tokenizer, tokenizer.token_to_id("[CLS]"))


def _read_config(path: Path) -> BertConfig:
    entries = read_object(path)
    try:
        config = BertConfig(
            vocabulary=entries["vocab_size"],
            context=entries["max_position_embeddings"],
            types=entries["type_vocab_size"],
            width=entries["hidden_size"],
            layers=entries["num_hidden_layers"],
            heads=entries["num_attention_heads"],
            hidden=entries["intermediate_size"],
            norm_epsilon=entries["layer_norm_eps"],
        )
    except (ValueError, TypeError, KeyError) as error:
        why = one_line(error)
        raise Refused(f"{path} does not describe a BERT ({why}).") from error
    for name, value in COMPUTED.items():
        got = entries.get(name, value)
        require(got == value, f"{name} in {path}", f"be {value!r}", got)
    return config


def bert_name(name: str) -> str:
    """Return the name of a module or a weight of :class:`Bert` in BERT's own files.

    For example, ``norm.bias`` is ``embeddings.LayerNorm.bias`` there.
    """
    rules = (
        (r"^words", "embeddings.word_embeddings"),
        (r"^positions", "embeddings.position_embeddings"),
        (r"^types", "embeddings.token_type_embeddings"),
        (r"^norm", "embeddings.LayerNorm"),
        (r"^layers\.(\d+)\.attention\.out", r"\1.attention.output.dense"),
        (r"^layers\.(\d+)\.attention", r"\1.attention.self"),
        (r"^layers\.(\d+)\.norm_1", r"\1.attention.output.LayerNorm"),
        (r"^layers\.(\d+)\.up", r"\1.intermediate.dense"),
        (r"^layers\.(\d+)\.down", r"\1.output.dense"),
        (r"^layers\.(\d+)\.norm_2", r"\1.output.LayerNorm"),
        (r"^(\d+)", r"encoder.layer.\1"),
    )
    for pattern, theirs in rules:
        name = re.sub(pattern, theirs, name)
    return name


def _read_tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    """Read a tokenizer that cuts texts after 256 tokens; its own file says 128.

    sentence-transformers cuts them there too.
    """
    tokenizer = open_tokenizer(path)
    size, rule = tokenizer.get_vocab_size(), f"be the model's, {vocabulary}"
    require(size == vocabulary, f"the vocabulary in {path}", rule, size)
    tokenizer.enable_truncation(MINILM_TOKENS)
    return tokenizer
