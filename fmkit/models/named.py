"""Give short names to the language models of a list."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from fmkit._check import require

# What a chapter calls an asset
ASSETS_IN_WORDS = {"smollm2-135m-instruct-q4": "SmolLM2, instruction-tuned, 4 bits"}
CACHED = r".*/models--([^/]+)/snapshots/[^/]+"  # a model in the cache of a hub


def by_name(pretrained: str | Sequence[str]) -> dict[str, str]:
    """Return one model or a list of models, each under a short name.

    A model is what :func:`fmkit.models.pretrained.load_pretrained` takes. Its name is
    the last part of its path or id, such as ``SmolLM2-360M``. If another model has the
    same last part, earlier parts precede it: ``run1-final`` and ``run2-final``. An
    empty text or list gives none. Raises ``ValueError`` if a list holds an empty text
    or the same model twice.
    """
    several = not isinstance(pretrained, str)
    models = [*pretrained] if several else [pretrained] * bool(pretrained)
    require(all(models), "pretrained", "hold no empty text", pretrained)
    same = [_absolute(model) for model in models]
    twice = [model for i, model in enumerate(models) if same[i] in same[:i]]
    require(not twice, "pretrained", "hold each model once", twice and twice[0])
    parts = [_parts(model) for model in models]
    names = [_ending(own, parts[:i] + parts[i + 1 :]) for i, own in enumerate(parts)]
    require(len({*names}) == len(names), "pretrained", "hold different names", names)
    return dict(zip(names, models, strict=True))


def _ending(own: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    """Join as many of the last parts of `own` as no other one ends with."""
    for n in range(1, len(own) + 1):
        if all(parts[-n:] != own[-n:] for parts in others):
            return "-".join(own[-n:])
    return "-".join(own)


def _absolute(model: str) -> str | Path:
    """Return the absolute path of a model here, without links; an id stays as it is."""
    path = Path(os.path.expanduser(model))
    return path.resolve() if os.path.exists(path) else model


def _parts(model: str) -> tuple[str, ...]:
    """Return the parts of a model's path or id, of which the last ones name it."""
    if model in ASSETS_IN_WORDS:
        return (ASSETS_IN_WORDS[model],)
    path = Path(os.path.expanduser(model))
    # Its own name if it is ".", and not that of what it links to
    if os.path.exists(path):
        model = Path(os.path.abspath(path)).as_posix()
    cached = re.match(CACHED, model)
    if cached:
        model = cached[1].replace("--", "/") + model[cached.end() :]
    model = re.sub(r"@([0-9a-f]{7})[0-9a-f]{33}(?=/|$)", r"@\1", model)  # a commit
    parts = tuple(part for part in model.removesuffix(".gguf").split("/") if part)
    return parts or (model,)
