"""Read and write low-rank updates in the format of peft, the library of LoRA.

A folder holds adapter_config.json, which describes the updates, and
adapter_model.safetensors, which holds them. A matrix has the name that transformers
gives it. Axes: d inputs and e outputs of a matrix, r rank.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fmkit._check import Refused, one_line, require
from fmkit._reading import check_tensors, open_tensors, read_object
from fmkit._writing import write_tensors, write_whole, writing

ALL = "all-linear"  # every linear layer but the one of the logits
LAST = "lm_head"
PREFIX = "base_model.model."  # of every tensor: peft's model holds that of transformers
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# What the entries that are read may hold; None is null, which means the default
KINDS = {
    "target_modules": (str, list),
    "exclude_modules": (str, list, None),
    "layers_to_transform": (int, list, None),
    "layers_pattern": (str, list, None),
    "rank_pattern": (dict, None),
    "alpha_pattern": (dict, None),
    "use_rslora": (bool, None),
}
# Numbers, and the entries with those of single layers
NUMBERS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}
# Entries that do not change what an adapter computes: where it comes from, how its
# training began, which activations training dropped
OF_THE_PAST = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
# Training that began in another way changed the pretrained matrices too
BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")


class Update(NamedTuple):
    """The update of one matrix, W + (alpha / r) B A."""

    A: Float[Tensor, "r d"]
    B: Float[Tensor, "e r"]
    alpha: float


def write_adapter(
    folder: Path,
    updates: Mapping[str, Update],
    *,
    others: Iterable[str],
    base: str | None,
    task: str | None,
) -> None:
    """Write updates by name of their matrix; `others` are linear layers without one."""
    r, alpha = next((len(update.A), update.alpha) for update in updates.values())
    ends = sorted({name.split(".")[-1] for name in updates})
    exact = not any(has_end(name, ends) for name in others)
    about = {  # in patterns with ^, because peft finds a name in longer ones too
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": ends if exact else sorted(updates),
        "rank_pattern": {
            f"^{name}": len(update.A)
            for name, update in updates.items()
            if len(update.A) != r
        },
        "alpha_pattern": {
            f"^{name}": update.alpha
            for name, update in updates.items()
            if update.alpha != alpha
        },
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "bias": "none",
        "modules_to_save": None,
    }
    tensors = {
        name: tensor.contiguous().clone()  # a file holds no memory twice
        for matrix, update in updates.items()
        for name, tensor in zip(_tensors(matrix), (update.A, update.B), strict=True)
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, tensors, about={"format": "pt"})
    text = json.dumps(about, indent=2, ensure_ascii=False)
    write_whole(folder / CONFIG, f"{text}\n")


def read_adapter(
    folder: Path,
    matrices: Mapping[str, tuple[int, int]],
    weights: Mapping[str, Tensor],
) -> dict[str, Update]:
    """Read the updates for a model whose linear layers are `matrices`: (e, d) by name.

    If the matrix of the logits has an update, peft writes a copy of the pretrained one
    too, which must be the model's own. `weights` are the model's by name.

    Raises ``ValueError``, with the file and its entry or tensor, if something is
    missing, damaged or not supported, or does not fit the model.
    """
    where, file = folder / CONFIG, folder / WEIGHTS
    about = _read_config(where)
    tensors = open_tensors(file)
    # A model that was saved without logits has names without this beginning
    bare = any(name.startswith(f"{PREFIX}layers.") for name in tensors)
    named = {n.removeprefix("model.") if bare else n: n for n in matrices}
    found, shapes = {}, {}
    for name, matrix in named.items():
        if _is_target(name, about, where):
            r, alpha = _size(name, about, where)
            A, B = _tensors(name)
            shapes |= {A: (r, matrices[matrix][1]), B: (matrices[matrix][0], r)}
            found[matrix] = (A, B, alpha)
    rule = "match linear layers of the model that are not the embedding too"
    targets = about["target_modules"]
    require(len(found) > 0, f"{where}: target_modules", rule, targets)
    for matrix, (A, _, _) in found.items():
        copy = A.replace("lora_A", "base_layer")
        if matrix in weights and copy in tensors:
            pair = weights[matrix].cpu(), tensors.pop(copy).read()
            # In the precision of either, because one may be the rounded other
            kinds = [tensor.dtype for tensor in pair]
            same = any(torch.equal(*(t.to(kind) for t in pair)) for kind in kinds)
            require(same, f"{file}: {copy}", "be the matrix of the model", "another")
    check_tensors(file, tensors, shapes, source=f"{CONFIG} and the model")
    return {
        matrix: Update(tensors[A].read(), tensors[B].read(), alpha)
        for matrix, (A, B, alpha) in found.items()
    }


def _tensors(matrix: str) -> tuple[str, str]:
    """Return the names of A and B of a matrix."""
    return tuple(f"{PREFIX}{matrix}.lora_{letter}.weight" for letter in "AB")


def _read_config(where: Path) -> dict[str, object]:
    """Return the entries of adapter_config.json, those in KINDS with their defaults."""
    about = read_object(where)
    kind, begun = (about.pop(n, None) for n in ("peft_type", "init_lora_weights"))
    require(kind == "LORA", f"{where}: peft_type", "be LORA", kind)
    rule = "be true, false, gaussian, orthogonal or eva"
    require(begun in BEGINNINGS, f"{where}: init_lora_weights", rule, begun)
    for name, value in about.items():
        if name not in KINDS.keys() | NUMBERS.keys() | OF_THE_PAST:
            off = not value or (name, value) == ("bias", "none")
            state = "none" if name == "bias" else "off"
            rule = f"be {state}, because fmkit supports nothing else"
            require(off, f"{where}: {name}", rule, value)
    for name, kinds in KINDS.items():
        value = about.setdefault(name, None)
        right = type(value) in {kind or type(None) for kind in kinds}
        words = " or ".join(kind.__name__ if kind else "null" for kind in kinds)
        require(right, f"{where}: {name}", f"be {words}", value)
        if isinstance(value, list):
            inside = int if name == "layers_to_transform" else str
            right = all(type(x) is inside for x in value)
            rule = f"have {inside.__name__} elements only"
            require(right, f"{where}: {name}", rule, value)
    for name, pattern in NUMBERS.items():
        entries = {name: about.get(name)}
        entries |= {f"{pattern} of {k}": x for k, x in (about[pattern] or {}).items()}
        kinds = (int,) if name == "r" else (int, float)
        rule = f"be {'a whole' if name == 'r' else 'a finite'} number above 0"
        for entry, x in entries.items():
            right = type(x) in kinds and 0 < x < math.inf
            require(right, f"{where}: {entry}", rule, x)
    if isinstance(about["target_modules"], str):
        of_layers = about["layers_to_transform"]
        rule = "be null where target_modules is a pattern"
        require(of_layers is None, f"{where}: layers_to_transform", rule, of_layers)
    return about


def _size(name: str, about: Mapping[str, object], where: Path) -> tuple[int, float]:
    """Return r and alpha of a matrix, alpha so that alpha / r is the scale."""
    r, alpha = (
        next(
            (
                value
                for key, value in (about[pattern] or {}).items()
                if _matches(rf"(.*\.)?({key})", name, f"{where}: {pattern}")
            ),
            about[entry],
        )
        for entry, pattern in NUMBERS.items()
    )
    return r, float(alpha * math.sqrt(r) if about["use_rslora"] else alpha)


def _is_target(name: str, about: Mapping[str, object], where: Path) -> bool:
    """Return whether the entries choose a matrix, as peft reads them."""
    excluded, targets = about["exclude_modules"], about["target_modules"]
    if excluded and _is_among(name, excluded, f"{where}: exclude_modules"):
        return False
    if isinstance(targets, str) and targets.lower() == ALL:
        return name != LAST
    if not _is_among(name, targets, f"{where}: target_modules"):
        return False
    chosen, patterns = about["layers_to_transform"], about["layers_pattern"]
    if name in targets or chosen is None or chosen == []:
        return True
    patterns = [patterns] if isinstance(patterns, str) else patterns
    forms = [rf"(?:.*?\.)?{pattern}" for pattern in patterns or []]
    for form in forms or [r".*?\.[^.]*"]:  # without a pattern, any list of layers
        numbered = rf"{form}\.(?P<layer>\d+)\..*"
        if found := _matches(numbered, name, f"{where}: layers_pattern"):
            layer = int(found["layer"])
            return layer in chosen if isinstance(chosen, list) else layer == chosen
    return False


def _is_among(name: str, names: str | list[str], where: str) -> bool:
    """Return whether a matrix has one of the names, or one that matches a pattern."""
    if isinstance(names, str):
        return _matches(names, name, where) is not None
    return has_end(name, names)


def has_end(name: str, ends: Iterable[str]) -> bool:
    """Return whether the last parts of a name with dots are one of `ends`."""
    return any(f".{name}".endswith(f".{end}") for end in ends)


def _matches(pattern: str, name: str, where: str) -> re.Match | None:
    """Match a whole name; raises Refused if `pattern` is no regular expression."""
    try:
        return re.fullmatch(pattern, name)
    except re.error as error:
        rule = f"be a regular expression ({one_line(error)})"
        raise Refused(f"{where} must {rule}, got {pattern}.") from error
