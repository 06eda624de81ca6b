"""The Transformer of 14.3: one class for models trained here and pretrained ones.

B batch, T tokens given, S tokens seen, V vocabulary, d width, h query heads, k key and
value heads, w width of a head. With ``causal=False`` it is the masked variant.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fmkit import runtime
from fmkit._check import require
from fmkit.data.tokens import PADDING


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of a ``Transformer``; the names in Llama's files are in brackets."""

    vocabulary: int  # V, with the start symbol [vocab_size]
    context: int  # longest sequence, x_0 counted [max_position_embeddings]
    width: int  # d [hidden_size]
    layers: int  # [num_hidden_layers]
    heads: int  # h [num_attention_heads]
    kv_heads: int  # k, each shared by h / k query heads [num_key_value_heads]
    hidden: int  # width inside an MLP [intermediate_size]
    rope_base: float = 10_000.0  # [rope_theta]
    norm_epsilon: float = 1e-5  # [rms_norm_eps]
    tied: bool = True  # logits come from the embedding matrix [tie_word_embeddings]
    causal: bool = True  # u_t sees x_0 .. x_{t-1}; otherwise the whole sequence
    own_head_width: int | None = None  # w, if it is not d / h [head_dim]
    qkv_bias: bool = False  # of queries, keys and values
    out_bias: bool = False  # of the product that ends attention
    head_norm: bool = False  # queries and keys are normalized, each head by itself
    rope_divisors: tuple[float, ...] = ()  # of the w/2 frequencies; none: all are 1
    unrotated: tuple[int, ...] = ()  # layers that do not see positions

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "layers", "heads", "kv_heads", "hidden"):
            require(
                getattr(self, name) >= 1, name, "be at least 1", getattr(self, name)
            )
        own = self.own_head_width
        if own is None:
            fits = self.width >= 1 and self.width % (2 * self.heads) == 0
            rule = f"be a multiple of twice the heads ({2 * self.heads})"
            require(fits, "width", rule, self.width)
        else:
            require(self.width >= 1, "width", "be at least 1", self.width)
            even = own >= 2 and own % 2 == 0
            require(even, "own_head_width", "be even and at least 2", own)
        rule = f"divide the heads ({self.heads})"
        require(self.heads % self.kv_heads == 0, "kv_heads", rule, self.kv_heads)
        positive = 0 < self.rope_base < float("inf")
        require(positive, "rope_base", "be above 0 and finite", self.rope_base)
        require(
            self.norm_epsilon >= 0, "norm_epsilon", "be at least 0", self.norm_epsilon
        )
        half = self.head_width // 2
        divisors = self.rope_divisors
        positive = all(0 < divisor < float("inf") for divisor in divisors)
        fits = len(divisors) in (0, half) and positive
        require(fits, "rope_divisors", f"be {half} numbers above 0, or none", divisors)
        known = all(0 <= layer < self.layers for layer in self.unrotated)
        rule = f"be layers from 0 to {self.layers - 1}"
        require(known, "unrotated", rule, self.unrotated)

    @property
    def head_width(self) -> int:
        """w, the length of a head's query, key and value."""
        return self.own_head_width or self.width // self.heads


class Cache:
    """Keys and values of the tokens seen so far, with room for `room` tokens a row.

    Prompts of different lengths are rows that begin with `padding` extra tokens.
    Nothing attends to these tokens, and positions do not count them.
    """

    def __init__(
        self, config: TransformerConfig, *, padding: list[int], room: int, like: Tensor
    ):
        require(config.causal, "causal", "be True for a cache", config.causal)
        fits = 1 <= room <= config.context
        require(fits, "room", f"be from 1 to the context ({config.context})", room)
        shape = (config.layers, len(padding), config.kv_heads, room, config.head_width)
        self.config = config
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.used = 0  # tokens a row
        self.padding = None
        if any(padding):
            self.padding = torch.tensor(padding, device=like.device)[:, None]  # (B, 1)

    def positions(self, T: int) -> Int[Tensor, "_ T"]:
        """Return the positions of the next T tokens: one row for all, or one each."""
        columns = torch.arange(self.used, self.used + T, device=self.keys.device)[None]
        if self.padding is None:
            return columns
        return (columns - self.padding).clamp(min=0)

    def mask(self, T: int) -> Bool[Tensor, "_ 1 T S"] | None:
        """Return which tokens the next T may attend to.

        None if no mask is needed beyond the causal order among the T themselves: for a
        single token, and if nothing is cached. Some kernels take no mask.
        """
        if self.padding is None and (T == 1 or self.used == 0):
            return None
        columns = torch.arange(self.used + T, device=self.keys.device)
        rows = columns[self.used :, None]  # (T, 1)
        mask = (columns <= rows)[None]
        if self.padding is not None:
            mask = mask & (columns >= self.padding[:, :, None])
            mask = mask | (columns == rows)  # a row without any would give 0 / 0
        return mask[:, None]

    def extend(
        self,
        layer: int,
        keys: Float[Tensor, "B k T w"],
        values: Float[Tensor, "B k T w"],
    ) -> tuple[Float[Tensor, "B k S w"], Float[Tensor, "B k S w"]]:
        """Add keys and values to those of a layer, and return all of them."""
        end = self.used + keys.shape[2]
        self.keys[layer, :, :, self.used : end] = keys
        self.values[layer, :, :, self.used : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def fork(self, rows: list[int], *, room: int) -> "Cache":
        """Return a cache whose row i continues row ``rows[i]`` of this one.

        A row may be named once, often or never. Later changes of one cache do not show
        in the other. Raises ``ValueError`` if there is less room than tokens.
        """
        rule = f"be at least the number of tokens in the cache ({self.used})"
        require(room >= self.used, "room", rule, room)
        padding = [0] * len(rows)
        if self.padding is not None:
            padding = self.padding[rows, 0].tolist()
        forked = Cache(self.config, padding=padding, room=room, like=self.keys)
        for new, old in ((forked.keys, self.keys), (forked.values, self.values)):
            new[:, :, :, : self.used] = old[:, rows, :, : self.used]
        forked.used = self.used
        return forked


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (Ainslie et al. 2023; Su 2021)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.h, self.k, self.w = config.heads, config.kv_heads, config.head_width
        self.causal = config.causal
        # Queries, keys and values in one product: three small ones take longer
        rows = (self.h + 2 * self.k) * self.w
        self.qkv = nn.Linear(config.width, rows, bias=config.qkv_bias)
        self.out = nn.Linear(self.h * self.w, config.width, bias=config.out_bias)
        self.norm_q = self.norm_k = None
        if config.head_norm:  # Henry et al. 2020, with a weight for each coordinate
            self.norm_q = nn.RMSNorm(self.w, eps=config.norm_epsilon)
            self.norm_k = nn.RMSNorm(self.w, eps=config.norm_epsilon)

    def projected(
        self, x: Float[Tensor, "B T d"], rotation: tuple[Tensor, Tensor] | None
    ) -> tuple[
        Float[Tensor, "B T h w"], Float[Tensor, "B T k w"], Float[Tensor, "B T k w"]
    ]:
        """Return the queries, keys and values of x, the first two as they are compared.

        They are normalized, if the model does so, and rotated, if this layer does so.
        """
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, self.h + 2 * self.k, self.w)
        qk, values = qkv.split([self.h + self.k, self.k], dim=2)
        if self.norm_q is not None:
            queries, keys = qk.split([self.h, self.k], dim=2)
            qk = torch.cat([self.norm_q(queries), self.norm_k(keys)], dim=2)
        if rotation is not None:
            qk = rotate(qk, *rotation)
        queries, keys = qk.split([self.h, self.k], dim=2)
        return queries, keys, values

    def forward(
        self,
        x: Float[Tensor, "B T d"],
        rotation: tuple[Tensor, Tensor] | None,
        past: tuple[Cache, int] | None,
        mask: Bool[Tensor, "_ 1 _ S"] | None,
    ) -> Float[Tensor, "B T d"]:
        B, T, _ = x.shape
        queries, keys, values = (t.transpose(1, 2) for t in self.projected(x, rotation))
        if past is not None:
            cache, layer = past
            keys, values = cache.extend(layer, keys, values)
        if T == 1 and self.h > self.k:  # the queries that share a key become rows
            queries = queries.reshape(B, self.k, self.h // self.k, self.w)
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=self.causal and mask is None and T > 1,
            enable_gqa=queries.shape[1] > keys.shape[1],
        )
        if T == 1:
            return self.out(mixed.reshape(B, 1, -1))
        return self.out(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """The gated MLP: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Float[Tensor, "B T d"]) -> Float[Tensor, "B T d"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) (Zhang and Sennrich 2019)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.norm_1 = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.attention = Attention(config)
        self.norm_2 = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Float[Tensor, "B T d"],
        rotation: tuple[Tensor, Tensor] | None,
        past: tuple[Cache, int] | None = None,
        mask: Bool[Tensor, "_ 1 _ S"] | None = None,
    ) -> Float[Tensor, "B T d"]:
        x = x + self.attention(self.norm_1(x), rotation, past, mask)
        return x + self.mlp(self.norm_2(x))


class Transformer(nn.Module):
    """f_theta of 14.3: x_0 .. x_T in, logits u_1 .. u_{T+1} out (14.6).

    ``embed`` looks up the vectors e_x, ``contextualize`` computes one vector c_t for
    each token from them, and ``logits`` computes u from c; calling the model does all
    three. Unlike the notes' figure it treats x_0 as a token like any other, a member of
    V. Weights are drawn from N(0, 0.02^2); at the end of a branch they are smaller by
    the square root of the number of branches (Radford et al. 2019).

    In the notes: Transformer, autoregressive, (14.7).
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        # Without the initial values of nn.Embedding, which would be overwritten
        empty = torch.empty(config.vocabulary, config.width)
        self.embedding = nn.Embedding.from_pretrained(empty, freeze=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.unembedding = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied:
            self.unembedding.weight = self.embedding.weight
        cos, sin = rotation_table(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2 and not weight.is_meta:
                ends = name.endswith(("out.weight", "down.weight"))
                shrink = (2 * config.layers) ** 0.5 if ends else 1
                nn.init.normal_(weight, std=0.02 / shrink)
            elif name.endswith("bias") and not weight.is_meta:
                nn.init.zeros_(weight)

    def cache(self, *, padding: list[int], room: int) -> Cache:
        """Return an empty :class:`~fmkit.models.transformer.Cache` for this model."""
        return Cache(
            self.config, padding=padding, room=room, like=self.embedding.weight
        )

    def embed(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T d"]:
        """Look up e_x of every token.

        Ids are not checked here, in every step of training, but where they enter:
        :func:`fmkit.data.tokens.check_ids`. torch raises ``IndexError`` on a CPU.

        In the notes: embedding matrix.
        """
        return self.embedding(tokens)

    def contextualize(
        self,
        vectors: Float[Tensor, "B T d"],
        cache: Cache | None = None,
        *,
        real: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T d"]:
        """Compute c_t of every token from its vector and the vectors that it may see.

        With a `cache` the vectors follow those in the cache, and are added to it. In a
        masked model no token attends to tokens that are not `real`. An autoregressive
        model needs no such mask, because padding comes last. Raises ``ValueError`` if
        there are more tokens than the context, or than the cache has room for, and if
        `real` is given to an autoregressive model.
        """
        rule = "be None in a causal model, which cannot see padding at the end"
        allowed = real is None or not self.config.causal
        require(allowed, "real", rule, None if real is None else [*real.shape])
        T, used = vectors.shape[1], cache.used if cache else 0
        room = cache.keys.shape[3] if cache else self.config.context
        rule = f"be at most the {'room of the cache' if cache else 'context'} ({room})"
        require(used + T <= room, "the number of tokens", rule, used + T)
        mask = cache.mask(T) if cache else None
        # A mask that hides nothing costs time on a CPU; asking would stop a GPU
        if real is not None and not (runtime.on_host(real) and real.all()):
            mask = real[:, None, None]  # (B, 1, 1, T)
        positions = cache.positions(T) if cache else slice(T)
        # (_, T, 1, w / 2): the same for every head
        rotation = tuple(
            table[positions].view(-1, T, 1, table.shape[1]).to(vectors.dtype)
            for table in (self.cos, self.sin)
        )
        x = vectors
        for layer, block in enumerate(self.blocks):
            turned = None if layer in self.config.unrotated else rotation
            x = block(x, turned, (cache, layer) if cache else None, mask)
        if cache:
            cache.used += T
        return self.norm(x)

    @property
    def width(self) -> int:
        """d, the length of a token's vector."""
        return self.config.width

    def token_vectors(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T d"]:
        """Compute c_t of every token of texts that end with padding.

        See :class:`fmkit.models.encoder.TextEncoder`.
        """
        # A causal model cannot see padding, which comes last
        real = None if self.config.causal else tokens != PADDING
        return self.contextualize(self.embed(tokens.clamp(min=0)), real=real)

    def logits(self, contextual: Float[Tensor, "*B d"]) -> Float[Tensor, "*B V"]:
        """Compute u from each c.

        In the notes: logits.
        """
        return self.unembedding(contextual)

    def forward(
        self, tokens: Int[Tensor, "B T"], cache: Cache | None = None
    ) -> Float[Tensor, "B T V"]:
        return self.logits(self.contextualize(self.embed(tokens), cache))


def with_weights(config: TransformerConfig, weights: dict[str, Tensor]) -> Transformer:
    """Build a model in eval mode from `weights`, without drawing or copying any.

    The weights are named as in its state; of a tied matrix the embedding is enough.
    Raises ``RuntimeError`` if a weight is missing, unknown or of the wrong shape.
    """
    with torch.device("meta"):
        model = Transformer(config)
    if config.tied:
        weights = {**weights, "unembedding.weight": weights["embedding.weight"]}
    model.load_state_dict(weights, assign=True)
    if config.tied:
        model.unembedding.weight = model.embedding.weight
    return model.eval()


def rotation_table(
    config: TransformerConfig,
) -> tuple[Float[Tensor, "context half"], Float[Tensor, "context half"]]:
    """Compute cosine and sine of position times base^(-2i/w), i from 0 to w/2 - 1.

    Each frequency is divided by its divisor, where the config has divisors: a model
    that was pretrained on short texts reads longer ones (Chen et al. 2023).
    """
    # On the CPU, even if the weights are on the meta device and have no values yet
    exponents = torch.arange(0, config.head_width, 2, device="cpu").double()
    frequencies = config.rope_base ** (-exponents / config.head_width)
    if config.rope_divisors:
        frequencies = frequencies / torch.tensor(
            config.rope_divisors, dtype=torch.float64, device="cpu"
        )
    angles = torch.arange(config.context, device="cpu")[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(
    x: Float[Tensor, "B T n w"], cos: Float[Tensor, "_ T 1 half"], sin: Tensor
) -> Float[Tensor, "B T n w"]:
    """Rotate pair (i, i + w/2) of each vector by the i-th angle of its position.

    Unlike Su 2021, who pairs neighbours, it pairs halves, as Llama's files do.
    """
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
