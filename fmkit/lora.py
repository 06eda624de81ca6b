"""Low-rank updates (LoRA): finetuning that changes a matrix by one of low rank.

Axes: d inputs and e outputs of a layer, r rank; any number of batch axes. B is a matrix
here, as in the paper, and not the size of a batch.

Updates are saved by themselves, in the format of ``peft``, the library of LoRA for
transformers. There a matrix has the name that transformers gives it, and queries, keys
and values have a matrix each.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fmkit import ranks
from fmkit._adapters import ALL, LAST, Update, has_end, read_adapter, write_adapter
from fmkit._check import Refused, require
from fmkit.models.bert import Bert, bert_name
from fmkit.models.pretrained import llama_parts
from fmkit.models.transformer import Transformer


class LowRank(nn.Module):
    r"""A frozen linear layer with a trained update of rank r.

    .. math:: x \mapsto W x + b + \frac{\alpha}{r} B A x

    A is drawn from the global generator as in ``peft``, uniformly within 1 / sqrt(d)
    of 0. B is 0, so at first nothing changes. Unlike the paper, whose A is Gaussian,
    and unlike ``peft``, it has no dropout. Raises ``ValueError`` if `rank` is no whole
    number from 1 to the smaller side of W, and if `alpha` is not positive and finite.
    Source: Hu et al. 2021.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float):
        limit = min(linear.weight.shape)
        rule = f"be a whole number from 1 to {limit}"
        fits = type(rank) is int and 1 <= rank <= limit
        require(fits, "rank", rule, rank)
        like = linear.weight.detach()
        A = like.new_empty(rank, linear.in_features)
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        self._hold(linear, A, like.new_zeros(linear.out_features, rank), alpha)

    @classmethod
    def of(
        cls,
        linear: nn.Linear,
        A: Float[Tensor, "r d"],
        B: Float[Tensor, "e r"],
        *,
        alpha: float,
    ) -> "LowRank":
        """Make a layer with a given update, in the precision of W; nothing is drawn."""
        layer, like = cls.__new__(cls), linear.weight
        A, B = (t.detach().to(like.device, like.dtype, copy=True) for t in (A, B))
        layer._hold(linear, A, B, alpha)
        return layer

    def _hold(self, linear: nn.Linear, A: Tensor, B: Tensor, alpha: float) -> None:
        positive = 0 < alpha < math.inf
        require(positive, "alpha", "be positive and finite", alpha)
        super().__init__()
        self.linear = linear
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.alpha = alpha
        self.scale = alpha / len(A)
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch e"]:
        """Compute the output of the layer plus that of the update."""
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.A), self.B)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return one linear layer that computes the same: W + (alpha / r) B A.

        The layer itself stays as it is.
        """
        linear = copy.deepcopy(self.linear)
        linear.weight += self.scale * self.B @ self.A
        return linear


class LowRankParts(nn.ModuleDict):
    """A linear layer as several, one for each part of its rows, with or without update.

    In a Transformer of this package one matrix computes queries, keys and values, where
    transformers and ``peft`` have three. A part is a linear layer or a
    :class:`LowRank`, and has its name there: ``q_proj``, ``k_proj``, ``v_proj``.
    """

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch e"]:
        """Compute the output of each part, side by side."""
        return torch.cat([part(x) for part in self.values()], dim=-1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return one linear layer that computes the same, and leave the parts alone."""
        parts = [p.merged() if isinstance(p, LowRank) else p for p in self.values()]
        biases = [part.bias for part in parts if part.bias is not None]
        return _frozen(
            torch.cat([part.weight for part in parts]),
            torch.cat(biases) if biases else None,
        )


def with_low_rank(
    model: nn.Module, names: str | Sequence[str], *, rank: int, alpha: float
) -> nn.Module:
    """Return a copy of `model` in which only low-rank updates are trained.

    Every linear layer gets an update if its path in the model ends in one of `names`:
    its last part, or several parts (``out``, ``mlp.down``). Everything else is frozen.
    A matrix that computes queries, keys and values together gets one update, not
    three.

    In a Transformer or a Bert, the names that transformers and ``peft`` use work too:
    ``o_proj`` is ``out``, and ``down_proj`` is ``down``. Parts of one matrix get an
    update each: ``q_proj``, ``k_proj`` and ``v_proj`` of ``qkv``, ``gate_proj`` and
    ``up_proj`` of ``gate_up``. ``all-linear`` stands for all names of this kind, except
    that of the logits.

    Raises ``ValueError`` if there are no `names`; if no linear layer without an update
    has one of them, where a matrix that is also the embedding does not count; if they
    name both a matrix and a part of it; and if `rank` or `alpha` does not fit.
    """
    names = [names] if isinstance(names, str) else [*names]
    require(len(names) > 0, "names", "be at least one name", names)
    model = copy.deepcopy(model).requires_grad_(False)
    layers = {p: x for p, x in _layers(model).items() if isinstance(x, nn.Linear)}
    parts = _parts(model, layers)
    known = [*layers, *(name for path in layers for name in parts[path])]
    for name in names:
        if name != ALL and not any(has_end(path, [name]) for path in known):
            ends = ", ".join(sorted({path.split(".")[-1] for path in known}))
            rule = "be those of linear layers with a matrix of their own and no update"
            raise Refused(f"names must {rule} ({ends}), got {name!r}.")

    def is_named(path: str) -> bool:
        return has_end(path, names)

    for path, layer in layers.items():
        some = [n for n in parts[path] if is_named(n) or (ALL in names and n != LAST)]
        whole = is_named(path)
        several = len(parts[path]) > 1
        both = whole and some and several
        rule = f"not name both {path} and parts of it"
        require(not both, "names", rule, names)
        if several and some:
            divided = _divided(layer, parts[path])
            for end in (name.split(".")[-1] for name in some):
                divided[end] = LowRank(divided[end], rank=rank, alpha=alpha)
            model.set_submodule(path, divided)
        elif whole or some:
            model.set_submodule(path, LowRank(layer, rank=rank, alpha=alpha))
    return model


def merge_low_rank(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with each update added to its matrix, for full speed."""
    model = copy.deepcopy(model)
    for path, layer in _layers(model).items():
        if not isinstance(layer, nn.Linear):
            model.set_submodule(path, layer.merged())
    return model


def without_low_rank(model: nn.Module) -> nn.Module:
    """Return a copy of `model` without its low-rank updates: the pretrained matrices.

    A matrix that was divided into parts is one again. Its numbers are those from before
    the updates, to the last bit, because W was never changed. Whatever was trained
    besides the updates stays as it is.
    """
    bare = copy.deepcopy(model)
    for path, layer in _layers(bare).items():
        if isinstance(layer, LowRank):
            bare.set_submodule(path, layer.linear)
        elif isinstance(layer, LowRankParts):
            parts = {
                name: part.linear if isinstance(part, LowRank) else part
                for name, part in layer.items()
            }
            bare.set_submodule(path, LowRankParts(parts).merged())
    return bare


def save_low_rank(
    folder: str | Path, model: nn.Module, *, base: str | Path | None = None
) -> None:
    """Write the low-rank updates of `model` into a folder, in the format of ``peft``.

    Nothing else of the model is written, so the pretrained model and a head that was
    trained with the updates must be kept elsewhere. :func:`load_low_rank` reads the
    folder, and so does ``PeftModel.from_pretrained`` for the same model in
    transformers. `base` is the folder or the id of the pretrained model, for tools that
    load it themselves. Weights keep their precision. The update of a matrix that is
    several in transformers becomes one for each, all with the same A.

    Raises ``ValueError`` if the model has no updates, if two matrices have one name
    because it holds two language models, and if `folder` is a file.
    """
    folder, layers = Path(folder), _layers(model)
    parts = _parts(model, layers)
    updates = {}
    for path, layer in layers.items():
        for name, update in _updates(layer, parts[path]):
            require(name not in updates, "model", f"have one {name}", "two")
            updates[name] = update
    require(len(updates) > 0, "model", "have low-rank updates", type(model).__name__)
    require(not folder.is_file(), "folder", "be no file", str(folder))
    others = [name for path in layers for name in parts[path] if name not in updates]
    if any(isinstance(module, Bert) for module in model.modules()):
        others.append("pooler.dense")  # which only transformers has
    causal = any(m.config.causal for m in model.modules() if isinstance(m, Transformer))
    if ranks.rank() == 0:
        task = "CAUSAL_LM" if causal else None
        base = None if base is None else str(base)
        write_adapter(folder, updates, others=others, base=base, task=task)


def load_low_rank(folder: str | Path, model: nn.Module) -> nn.Module:
    """Return a copy of `model` with the low-rank updates in a folder of ``peft``.

    `model` is the pretrained model that the updates belong to, itself without updates.
    Only the updates can be trained further. They get the precision of `model`, and
    nothing is drawn. Unlike in ``peft`` there is no dropout (``lora_dropout``), which
    matters in training only. Updates of all parts of a matrix that have A in common
    become one update, as it was when :func:`save_low_rank` wrote it.

    Ranks and alphas of single layers (``rank_pattern``, ``alpha_pattern``), updates of
    some layers (``layers_to_transform``) and scales of alpha / sqrt(r)
    (``use_rslora``) are supported. Raises ``ValueError`` with the file and its entry or
    tensor, and loads nothing, if a file is missing or damaged; if an entry says
    anything else that changes the model, such as ``use_dora``, ``bias`` or
    ``modules_to_save``; and if a tensor is missing, unknown or of the wrong shape.
    """
    layers = _layers(model)
    updated = [path for path, x in layers.items() if not isinstance(x, nn.Linear)]
    rule = "have no low-rank updates yet"
    require(not updated, "model", rule, ", ".join(updated[:1]))
    parts = _parts(model, layers)
    matrices = {
        name: (rows, layers[path].in_features)
        for path in layers
        for name, rows in parts[path].items()
    }
    names = sum(len(parts[path]) for path in layers)
    rule = "have one language model"
    require(len(matrices) == names, "model", rule, type(model).__name__)
    weights = {
        name: layers[path].weight.detach()
        for path in layers
        for name in parts[path]
        if len(parts[path]) == 1
    }
    updates = read_adapter(Path(folder), matrices, weights)
    model = copy.deepcopy(model).requires_grad_(False)
    for path, layer in _layers(model).items():
        if any(name in updates for name in parts[path]):
            model.set_submodule(path, _with_updates(layer, parts[path], updates))
    return model


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return all linear layers by path, with their updates.

    Without those whose matrix is an embedding too, which would lose its change.
    """
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    layers, inside = {}, None
    for path, layer in model.named_modules():
        if inside and path.startswith(inside):
            continue
        tied = isinstance(layer, nn.Linear) and any(
            layer.weight is weight for weight in embeddings
        )
        if isinstance(layer, nn.Linear | LowRank | LowRankParts) and not tied:
            layers[path], inside = layer, f"{path}."
    return layers


def _parts(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, dict]:
    """Return, for each layer, the rows of its parts by their names in transformers.

    Most layers are one part. Outside of a Transformer or a Bert, its name is its path.
    """
    parts = {path: {path: _outputs(layer)} for path, layer in layers.items()}
    for place, module in model.named_modules():
        start = f"{place}." if place else ""
        if isinstance(module, Bert | Transformer):
            for path in (path for path in parts if path.startswith(start)):
                inner, rows = path.removeprefix(start), _outputs(layers[path])
                if isinstance(module, Bert):
                    parts[path] = {bert_name(inner): rows}
                else:
                    tensors = llama_parts(f"{inner}.weight", module.config)
                    parts[path] = {
                        name.removesuffix(".weight"): shape[0]
                        for name, shape in tensors.items()
                    }
    return parts


def _outputs(layer: nn.Module) -> int:
    """Return e of a linear layer with or without updates."""
    if isinstance(layer, LowRankParts):
        return sum(_outputs(part) for part in layer.values())
    return layer.out_features


def _updates(layer: nn.Module, rows: Mapping[str, int]) -> Iterator[tuple[str, Update]]:
    """Yield the updates of a layer by the names of its parts."""
    if isinstance(layer, LowRank):
        A, B = (ranks.whole(t.detach()) for t in (layer.A, layer.B))
        for name, part in zip(rows, B.split([*rows.values()]), strict=True):
            yield name, Update(A, part, layer.alpha)
    elif isinstance(layer, LowRankParts):
        for (name, n), part in zip(rows.items(), layer.values(), strict=True):
            yield from _updates(part, {name: n})


def _with_updates(
    layer: nn.Linear, rows: Mapping[str, int], updates: Mapping[str, Update]
) -> nn.Module:
    """Return a layer with the updates of its parts, as one update if it is one."""
    found = [updates[name] for name in rows if name in updates]
    first = found[0]
    if len(found) == len(rows) and all(
        update.alpha == first.alpha and torch.equal(update.A, first.A)
        for update in found
    ):
        B = torch.cat([update.B for update in found])
        return LowRank.of(layer, first.A, B, alpha=first.alpha)
    divided = _divided(layer, rows)
    for name in rows:
        if name in updates:
            A, B, alpha = updates[name]
            end = name.split(".")[-1]
            divided[end] = LowRank.of(divided[end], A, B, alpha=alpha)
    return divided


def _divided(layer: nn.Linear, rows: Mapping[str, int]) -> LowRankParts:
    """Return the same layer in parts, none of which has an update yet."""
    weights = layer.weight.detach().split([*rows.values()])
    biases = [None] * len(rows)
    if layer.bias is not None:
        biases = layer.bias.detach().split([*rows.values()])
    return LowRankParts(
        {
            name.split(".")[-1]: _frozen(weight.clone(), bias)
            for name, weight, bias in zip(rows, weights, biases, strict=True)
        }
    )


def _frozen(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Make a linear layer of given weights, which is not trained; nothing is drawn."""
    e, d = weight.shape
    linear = nn.Linear(d, e, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return linear
