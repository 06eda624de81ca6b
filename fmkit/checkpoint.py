"""A run that is stopped goes on where it was, bit for bit.

A checkpoint is one file with the weights, the optimizer's state, the states of random
generators and the number of the last step. A loop that keeps one:

    generators = {"windows": rng}  # whatever is drawn from while training
    run = {"model": model, "optimizer": optimizer, "generators": generators}
    first = load_checkpoint(path, **run) if path.exists() else 0
    for record in train(loss_of, batches, optimizer, steps=steps, first_step=first):
        if (record.step + 1) % every == 0:
            save_checkpoint(path, step=record.step, **run)

Stopped by Ctrl-C or by anything else, it repeats what came after the last checkpoint
when it is run again. The position in the data is one of two things. Batches drawn anew
at each step need the generator that they are drawn from among `generators`. Batches
that come in an order, as those of :func:`fmkit.train.minibatches`, are drawn again from
the beginning, by a generator which serves nothing else and is not among `generators`:

    order = torch.Generator().manual_seed(seed)
    batches = minibatches(n, batch_size=batch_size, generator=order)
    batches = islice(batches, first, None)

Dropout draws from the global generator: ``{"global": torch.default_generator}``.
"""

import os
import pickle
import zipfile
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from fmkit._check import Refused, require

FORMAT = 1


class CheckpointError(Refused):
    """A file is no checkpoint, or one of another run."""


def save_checkpoint(
    path: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    generators: dict[str, torch.Generator],
) -> None:
    """Write what a run needs to go on after `step`, whole or not at all.

    An interrupt while writing leaves the checkpoint that was there. `model` must have
    every parameter of the optimizer: for several modules, an ``nn.ModuleDict`` of them.
    """
    require(step >= 0, "step", "be at least 0", step)
    saved = {
        "format": FORMAT,
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "trained": _trained(model, optimizer),
        "generators": {name: g.get_state() for name, g in generators.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(saved, staging)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def load_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    generators: dict[str, torch.Generator],
) -> int:
    """Set model, optimizer and generators to what they were; return the next step.

    They come as a new run makes them. Raises :class:`CheckpointError`, before anything
    is changed, where the file is missing, damaged, or of a run with another model,
    another optimizer, other settings of it or other generators.
    """
    saved = _read(path)
    wrong = (
        _other_model(saved["model"], model.state_dict())
        or _other_optimizer(saved, model, optimizer)
        or _other_generators(saved["generators"], generators)
    )
    if wrong:
        raise CheckpointError(f"{path} is of another run: {wrong}.")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    for name, generator in generators.items():
        generator.set_state(saved["generators"][name])
    return saved["step"] + 1


def _read(path: Path) -> dict:
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at checksums
            damaged = archive.testzip() is not None
        saved = {}
        if not damaged:
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint at {path}.") from error
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint.") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise CheckpointError(f"{path} is damaged or no checkpoint.")
    return saved


def _trained(model: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """The names of what each group of the optimizer holds, in its order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    strangers = sum(p not in names for group in groups for p in group)
    rule = "hold parameters of the model only"
    require(not strangers, "optimizer", rule, f"{strangers} others")
    return [[names[p] for p in group] for group in groups]


def _other_model(there: dict[str, torch.Tensor], here: dict[str, torch.Tensor]) -> str:
    """How the tensors of two models differ; empty if they have the same form."""
    for name, tensor in here.items():
        if name not in there:
            return f"it has no {name}"
        other, form = _form(there[name]), _form(tensor)
        if form != other:
            return f"its {name} is {other}, not {form}"
    extra = [name for name in there if name not in here]
    return f"it has {extra[0]}, which is not in the model" if extra else ""


def _form(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _other_optimizer(saved: dict, model: nn.Module, optimizer: Optimizer) -> str:
    """How the settings of two optimizers differ; empty if they do not."""
    trained = _trained(model, optimizer)
    if saved["trained"] != trained:
        return f"its optimizer holds {saved['trained']}, not {trained}"
    groups = saved["optimizer"]["param_groups"]
    for i, (there, here) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        for name in sorted((there.keys() | here.keys()) - {"params"}):
            a, b = there.get(name), here.get(name)
            if a != b:
                return f"{name} of its optimizer's group {i} is {a}, not {b}"
    return ""


def _other_generators(
    there: dict[str, torch.Tensor], here: dict[str, torch.Generator]
) -> str:
    if there.keys() != here.keys():
        return f"its generators are {sorted(there)}, not {sorted(here)}"
    for name, generator in here.items():
        if there[name].shape != generator.get_state().shape:
            return f"its generator {name} is of another kind of device"
    return ""
