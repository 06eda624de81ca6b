"""Save a training run, so that a stopped run continues as if it had not stopped.

A checkpoint is one file with the weights, the state of the optimizer, the states of
random generators, the number of the last step, and notes of the run. This run writes
checkpoints and, if it was stopped, continues from the last one::

    losses = []
    options = {"model": model, "generators": {"views": rng}, "steps": steps}
    options |= {"notes": {"losses": losses}, "settings": {"seed": seed, "tau": tau}}
    for record in resume(path, loss_of, batches, optimizer, **options):
        losses.append(record.loss)

If it is stopped, by Ctrl-C or in any other way, and started again, it repeats the steps
after the last checkpoint. Any number of processes may go on with a file that another
number has written (:mod:`fmkit.ranks`).

Dropout draws from a generator of the device, ``runtime.global_generator(device)``,
which is then one of `generators` too.

On a CPU the run is the same bit for bit. A GPU adds up in an order that changes from
run to run, so there it is the same up to rounding, and bit for bit only inside
:func:`fmkit.runtime.deterministic`.
"""

import pickle
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fmkit import ranks
from fmkit._check import Refused, require
from fmkit._writing import whole, writing
from fmkit.train import Record, Records, constant, train

SECONDS = 60  # between two checkpoints, about: what a stopped run loses at most
OF_DEVICE = ("foreach", "fused")  # options of an optimizer that change no result
Notes = dict[str, list | dict]


class CheckpointError(Refused):
    """A file is missing, is no checkpoint, or is the checkpoint of another run."""


def resume(
    path: str | Path | None,
    loss_of: Callable[..., Tensor],
    batches: Iterable,
    optimizer: Optimizer,
    *,
    model: nn.Module,
    generators: dict[str, torch.Generator],
    steps: int,
    notes: Notes | None = None,
    settings: dict[str, object] | None = None,
    schedule: Callable[[int, int], float] = constant,
    tokens_a_step: int = 0,
) -> Records:
    """Train as :func:`fmkit.train.train` does, with a checkpoint at `path`.

    If the file is there, the run goes on after its last step, and `notes` are restored:
    lists and dictionaries of numbers, texts and tensors which the caller fills on the
    way. A checkpoint is written about once a minute, when the caller asks for the next
    record, and before the last step, which is therefore always taken. If `path` is
    None, this is only :func:`~fmkit.train.train`. Several processes all train and
    decide as one; the first reads and writes, and only its `path` counts.

    `batches` are those of a new run, drawn by a generator that serves nothing else.
    They are drawn again from the beginning, and those of earlier steps are left out.
    `generators` are all others that training draws from. Raises the errors of
    :func:`load_checkpoint`.
    """
    keeps = ranks.from_first(lambda: path is not None)
    clock = [0.0]  # seconds of earlier parts of the run
    run = {"model": model, "optimizer": optimizer, "generators": generators}
    run |= {"notes": {"seconds": clock, **(notes or {})}, "settings": settings}
    first = 0
    if keeps and ranks.from_first(lambda: Path(path).exists()):
        first = load_checkpoint(path, **run)
    options = {"modules": [model], "steps": steps, "first_step": first}
    options |= {"schedule": schedule, "tokens_a_step": tokens_a_step}
    batches = islice(batches, first, None)
    records = train(loss_of, batches, optimizer, **options, agree=ranks.agree)

    def kept() -> Iterator[Record]:
        before, start = clock[0], time.monotonic()
        due, interval = first, 1
        for record in records:
            clock[0] = before + record.seconds
            yield replace(record, seconds=clock[0])
            if record.step + 1 == steps or record.step not in (due, steps - 2):
                continue
            if ranks.agree(record.loss_tensor.isfinite()):
                save_checkpoint(path, step=record.step, **run)
            interval = _next_interval(interval, time.monotonic() - start)
            due, start = record.step + interval, time.monotonic()

    return Records(kept(), steps - first) if keeps else records


def _next_interval(interval: int, seconds: float) -> int:
    """Return after how many steps to save next; the last `interval` took `seconds`.

    The clocks of several processes differ, so the first one decides.
    """

    def by_pace() -> int:
        in_time = int(SECONDS * interval / max(seconds, 1e-9))
        return max(1, min(in_time, 10 * interval))  # the first steps may be slow

    return ranks.from_first(by_pace)


def save_checkpoint(
    path: str | Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    generators: dict[str, torch.Generator],
    notes: Notes | None = None,
    settings: dict[str, object] | None = None,
) -> None:
    """Write the state of a run after `step`, either whole or not at all.

    An interrupt during the write leaves the previous checkpoint as it was. Of several
    processes, all must call it, and the first writes. Raises ``ValueError`` if `step`
    is negative, if `model` lacks a parameter of the optimizer (for several modules,
    pass an ``nn.ModuleList`` of them), or if the file cannot be written.
    """
    require(step >= 0, "step", "be at least 0", step)
    of_optimizer = optimizer.state_dict()
    saved = {
        "step": step,
        "form": _form(model, optimizer, generators, settings),
        "model": {name: ranks.whole(x) for name, x in model.state_dict().items()},
        "optimizer": of_optimizer
        | {"state": _each(ranks.whole, of_optimizer["state"])},
        "generators": {name: g.get_state() for name, g in generators.items()},
        "notes": notes or {},
    }
    if ranks.rank() == 0:
        _write(Path(path), saved)


def _each(function: Callable[[object], object], states: dict) -> dict:
    """Apply a function to each value in the state of each parameter."""
    return {
        key: {name: function(x) for name, x in state.items()}
        for key, state in states.items()
    }


def _write(path: Path, saved: dict) -> None:
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as staging, open(staging, "wb") as file:
        try:
            torch.save(saved, file)
        except RuntimeError as error:  # torch's own, where a full disk is the reason
            reason = error.__context__
            raise reason if isinstance(reason, OSError) else error from None


def load_checkpoint(
    path: str | Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    generators: dict[str, torch.Generator],
    notes: Notes | None = None,
    settings: dict[str, object] | None = None,
) -> int:
    """Restore model, optimizer, generators and notes in place; return the next step.

    Pass them freshly made, as at the start of a run. Of several processes, all must
    call it, and the first reads. Raises :class:`CheckpointError` if the file is missing
    or damaged, or if the run that it belongs to has a model of another form, another
    optimizer, other settings or other generators. Then nothing is changed.
    """
    form = _form(model, optimizer, generators, settings)
    saved = ranks.from_first(lambda: _read(path, form))
    own = model.state_dict()
    model.load_state_dict({n: ranks.like(x, own[n]) for n, x in saved["model"].items()})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = {
        i: {name: ranks.like(x, parameters[i]) for name, x in state.items()}
        for i, state in saved["optimizer"]["state"].items()
    }
    own_groups = optimizer.state_dict()["param_groups"]
    # They equal the saved ones but for options of the device, which a state obeys
    optimizer.load_state_dict({"state": states, "param_groups": own_groups})
    for name, generator in generators.items():
        generator.set_state(saved["generators"][name])
    device = parameters[0].device
    for name, note in (notes or {}).items():
        restored = _moved(saved.get("notes", {}).get(name, note), device)
        note.clear()
        (note.update if isinstance(note, dict) else note.extend)(restored)
    return saved["step"] + 1


def _of_result(group: dict[str, object]) -> dict[str, object]:
    """Leave out the options of an optimizer's group that change no result."""
    return {name: value for name, value in group.items() if name not in OF_DEVICE}


def _moved(note: object, device: torch.device) -> object:
    """Bring all tensors in a note to a device."""
    if isinstance(note, Tensor):
        return note.to(device)
    if isinstance(note, dict):
        return {key: _moved(value, device) for key, value in note.items()}
    if isinstance(note, list | tuple):
        return type(note)(_moved(value, device) for value in note)
    return note


def _read(path: str | Path, form: dict) -> dict:
    """Read a checkpoint of a form, without running code that a file may contain."""
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
    for part, here in form.items():
        there = saved["form"].get(part, {})
        if part == "optimizer":
            there = [_of_result(group) for group in there]
        if there != here:
            what = f"its {part} differs"
            if part == "settings":
                name = next(n for n in here | there if here.get(n) != there.get(n))
                what = f"its {name} is {there.get(name)!r}, not {here.get(name)!r}"
            raise CheckpointError(f"{path} is of another run: {what}.")
    return saved


def _form(
    model: nn.Module,
    optimizer: Optimizer,
    generators: dict[str, torch.Generator],
    settings: dict[str, object] | None,
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
            {**_of_result(group), "params": [names[id(p)] for p in group["params"]]}
            for group in groups
        ],
        "generators": {name: len(g.get_state()) for name, g in generators.items()},
        "settings": settings or {},
    }
