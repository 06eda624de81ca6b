"""Save a training run, so that a stopped run continues as if it had not stopped.

A checkpoint is one file with the weights, the state of the optimizer, the states of
random generators and the number of the last step. A loop that writes checkpoints::

    generators = {"windows": rng}  # all generators that training draws from
    run = {"model": model, "optimizer": optimizer, "generators": generators}
    first = load_checkpoint(path, **run) if path.exists() else 0
    options = {"modules": [model], "steps": steps, "first_step": first}
    for record in train(loss_of, batches, optimizer, **options):
        if (record.step + 1) % every == 0:
            save_checkpoint(path, step=record.step, **run)

If the run is stopped, by Ctrl-C or in any other way, and started again, it repeats the
steps after the last checkpoint. The position in the data is restored in one of two
ways. If each batch is drawn anew, its generator is one of `generators`. If batches come
in an order, as from :func:`fmkit.train.minibatches`, they are drawn again from the
beginning, by a generator that serves nothing else and is not one of `generators`::

    order = torch.Generator().manual_seed(seed)
    batches = minibatches(n, batch_size=batch_size, generator=order)
    batches = islice(batches, first, None)

Dropout draws from a generator of the device, ``runtime.global_generator(device)``,
which is then one of `generators` too.

On a CPU the run is the same bit for bit. A GPU adds up in an order that changes from
run to run, so there it is the same up to rounding, and bit for bit only inside
:func:`fmkit.runtime.deterministic`.
"""

import os
import pickle
import zipfile
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from fmkit._check import Refused, require


class CheckpointError(Refused):
    """A file is missing, is no checkpoint, or is the checkpoint of another run."""


def save_checkpoint(
    path: str | Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    generators: dict[str, torch.Generator],
) -> None:
    """Write the state of a run after `step`, either whole or not at all.

    An interrupt during the write leaves the previous checkpoint as it was. Raises
    ``ValueError`` if `step` is negative, or if `model` lacks a parameter of the
    optimizer: for several modules, pass an ``nn.ModuleDict`` of them.
    """
    require(step >= 0, "step", "be at least 0", step)
    saved = {
        "step": step,
        "form": _form(model, optimizer, generators),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generators": {name: g.get_state() for name, g in generators.items()},
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(saved, staging)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def load_checkpoint(
    path: str | Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    generators: dict[str, torch.Generator],
) -> int:
    """Restore model, optimizer and generators in place; return the next step.

    Pass them freshly made, as at the start of a run. Raises :class:`CheckpointError`
    if the file is missing or damaged, or if the run that it belongs to has a model of
    another form, another optimizer, other settings or other generators. Then nothing
    is changed.
    """
    saved = _read(path)
    form = _form(model, optimizer, generators)
    for part in form:
        if saved["form"][part] != form[part]:
            raise CheckpointError(f"{path} is of another run: its {part} differs.")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    for name, generator in generators.items():
        generator.set_state(saved["generators"][name])
    return saved["step"] + 1


def _read(path: str | Path) -> dict:
    """Read a checkpoint, without running code that a file may contain."""
    wrong = f"{path} is missing, damaged or no checkpoint."
    reasons = (OSError, RuntimeError, ValueError, EOFError)
    reasons += (zipfile.BadZipFile, pickle.UnpicklingError)
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load ignores the checksums
            require(archive.testzip() is None, "checksums", "match", str(path))
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except reasons as error:
        raise CheckpointError(wrong) from error
    if not isinstance(saved, dict) or "form" not in saved:
        raise CheckpointError(wrong)
    return saved


def _form(
    model: nn.Module, optimizer: Optimizer, generators: dict[str, torch.Generator]
) -> dict:
    """Return everything that a run and its checkpoint must have in common.

    An optimizer numbers its parameters, so their order belongs to it.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optimizer.param_groups
    outside = sum(id(p) not in names for group in groups for p in group["params"])
    rule = "hold parameters of the model only"
    require(outside == 0, "optimizer", rule, f"{outside} others")
    state = model.state_dict()
    return {
        "model": {name: (tuple(x.shape), str(x.dtype)) for name, x in state.items()},
        "optimizer": [
            {**group, "params": [names[id(p)] for p in group["params"]]}
            for group in groups
        ],
        "generators": {name: len(g.get_state()) for name, g in generators.items()},
    }
