"""Train a base model on everything installed here, and record how it develops.

A base model has seen text and nothing else: no instructions, no conversations. ::

    python -m tools.base_model runs/base corpus
    python -m tools.base_model runs/base small
    torchrun --nproc-per-node 8 -m tools.base_model runs/base large

The first command writes the text, cut into tokens, once: ``corpus.safetensors`` with
the tokenizer, and ``licences.txt``. It needs no GPU. The others train a model of a size
in ``SIZES``, in any number of processes. A run that was stopped goes on if the command
is repeated. Into its folder, here ``runs/base/small``, go the model after 1, 2, 4, …
steps and after the last, in float16, and ``record.json`` with what ``look`` finds in
each of them.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor

from fmkit import ranks, runtime
from fmkit._check import require
from fmkit._writing import write_tensors, write_whole
from fmkit.checkpoint import resume
from fmkit.data.docstrings import Document
from fmkit.data.installed import licences, load_installed
from fmkit.data.text import split_by_group, without_near_duplicates
from fmkit.data.tokens import START, byte_pairs, pack, read_tokenizer, windows
from fmkit.evaluate import bits_per_byte, token_nats
from fmkit.losses import next_token_loss
from fmkit.models.heads import attention_weights
from fmkit.models.language_model import LanguageModel
from fmkit.models.saved import load_trained, save_trained
from fmkit.models.transformer import Transformer, TransformerConfig
from fmkit.muon import Muon
from fmkit.progress import progress
from fmkit.prompt import BARE, choice_accuracy, draw_examples, score_answers
from fmkit.runs.record import new_record, write_record
from fmkit.tasks.questions import candidates, load_task
from fmkit.train import warmup_cosine

VOCABULARY = 4096
LEARNED_ON = 10  # every tenth document, for the merges of the tokenizer
HELD_OUT = 256  # windows of the test text, evenly spread, on which models are compared
COPIED, DRAWS = 25, 16  # random tokens that are repeated once, as in inside_the_box
TASKS, EXAMPLES = ("antonyms", "capitals", "past_tense"), (0, 4)
QUERIES, ANSWERS = 64, 4  # of a task, and to choose from
COMPILED = 1000  # steps from which compiling, a minute, is worth it
SEED = 0


@dataclass(frozen=True)
class Size:
    """The shape of a model and the length of its training."""

    width: int
    layers: int
    heads: int
    learning_rate: float
    context: int = 512
    batch_size: int = 256
    steps: int = 2048


SIZES = {
    "tiny": Size(32, 2, 2, 0.012, context=256, batch_size=4, steps=6),  # for tests
    "small": Size(128, 6, 4, 0.006),  # 1.7 million parameters, 3.4 MB
    "large": Size(512, 9, 8, 0.003),  # 30 million, 61 MB
}


@dataclass(frozen=True)
class Corpus:
    """Two sequences of tokens in 16 bits, and the tokenizer that cut them."""

    train: Tensor
    test: Tensor
    tokenizer: Tokenizer


def write_corpus(
    folder: Path, documents: Sequence[Document], *, vocabulary: int = VOCABULARY
) -> None:
    """Split documents, cut both parts into tokens, and write them."""
    train, test = split_by_group(without_near_duplicates(documents))
    texts = {"train": [d.text for d in train], "test": [d.text for d in test]}
    tokenizer = byte_pairs(texts["train"][::LEARNED_ON], vocabulary=vocabulary)
    sequences = {
        name: pack(_encoded(tokenizer, part), start=START).short()
        for name, part in texts.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus.safetensors"
    write_tensors(path, sequences, about={"tokenizer": tokenizer.to_str()})
    of_each = [f"{name}: {licence}" for name, licence in licences().items()]
    write_whole(folder / "licences.txt", "\n".join(of_each) + "\n")
    for name, part in texts.items():
        size, tokens = sum(len(t.encode()) for t in part), len(sequences[name])
        print(f"{name}: {len(part):,} documents, {size:,} bytes, {tokens:,} tokens")


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """Yield the ids of each text; some at a time, which takes all cores."""
    rest = iter(texts)
    while some := [*islice(rest, 256)]:
        for encoding in tokenizer.encode_batch_fast(some, add_special_tokens=False):
            yield encoding.ids


def read_corpus(folder: Path) -> Corpus:
    """Open what :func:`write_corpus` wrote. Pages of the file are read when needed."""
    path = folder / "corpus.safetensors"
    rule = f"have corpus.safetensors; python -m tools.base_model {folder} corpus"
    require(path.is_file(), "folder", rule, str(folder))
    with safe_open(path, framework="pt") as file:
        parts = file.get_tensor("train"), file.get_tensor("test")
        return Corpus(*parts, read_tokenizer(file.metadata()["tokenizer"]))


def train(folder: Path, size: Size, corpus: Corpus, device: torch.device) -> float:
    """Train a model, keep it after 1, 2, 4, … steps; return the seconds it took."""
    d, V = size.width, corpus.tokenizer.get_vocab_size()
    shape = {"width": d, "heads": size.heads, "kv_heads": size.heads}
    shape |= {"layers": size.layers, "hidden": 8 * d // 3 // 16 * 16}
    runtime.seed_weights(SEED)
    config = TransformerConfig(vocabulary=V, context=size.context, **shape)
    model = Transformer(config).to(device)
    network = ranks.replicated(model)
    if size.steps >= COMPILED:
        network = runtime.compiled(network)

    def loss_of(x: Tensor) -> Tensor:
        x = ranks.rows(x).long()
        return ranks.mean(next_token_loss(network(x[:, :-1]), x[:, 1:]))

    drawn = {"context": size.context, "batch_size": size.batch_size}
    drawn["generator"] = torch.Generator().manual_seed(SEED)
    batches = windows(corpus.train.to(device), **drawn)
    optimizer = Muon.of(model, lr=size.learning_rate)
    settings = asdict(size) | {"tokens": len(corpus.train)}
    options = {"model": model, "generators": {}, "steps": size.steps}
    options |= {"schedule": warmup_cosine(0.05), "settings": settings}
    kept = kept_after(size.steps)
    records = resume(folder / "run.pt", loss_of, batches, optimizer, **options)
    for record in progress(records, bar=folder.name):
        done = record.step + 1
        if done in kept and ranks.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            save_trained(path_of(folder, done), model, corpus.tokenizer)
    return record.seconds


def kept_after(steps: int) -> list[int]:
    """Return the steps after which a model is kept: 1, 2, 4, … and the last one."""
    return sorted({2**i for i in range(steps.bit_length())} | {steps})


def path_of(folder: Path, steps: int) -> Path:
    return folder / f"step-{steps:06}.safetensors"


def look(lm: LanguageModel, test: Tensor) -> dict[str, float]:
    """Return what is measured of a model, by names of metrics without their first part.

    The loss on held-out text, in nats a token and bits per byte, and that of tokens
    early and late in a window, whose difference is what more context is worth. On
    random tokens repeated once: the loss of both copies, and the highest score of a
    head for induction and for the token before. The accuracy of choices with and
    without examples.
    """
    T, device = lm.model.config.context, lm.model.embedding.weight.device
    first = torch.linspace(0, len(test) - T - 1, HELD_OUT).long()
    x = test[first[:, None] + torch.arange(T + 1)].long()
    nats = token_nats(lm.model, x.to(device).split(32)).view(len(x), T).cpu()
    text = "".join(lm.tokenizer.decode_batch(x[:, 1:].tolist()))
    found = {
        "nats/0": nats.mean().item(),
        "nats-early/0": nats[:, T // 16 : T // 8].mean().item(),
        "nats-late/0": nats[:, -T // 8 :].mean().item(),
    }
    bits = bits_per_byte(found["nats/0"], tokens=nats.numel(), text=text)
    found |= {"bits-per-byte/0": bits} | copying(lm.model)
    for task in TASKS:
        for k in EXAMPLES:
            found[f"{task}/{k}"] = accuracy(lm, task, k)
    return {f"{name}/test": value for name, value in found.items()}


def copying(model: Transformer) -> dict[str, float]:
    """Return losses of random tokens repeated once, and the scores of the best heads.

    The score of a head is its mean weight, from tokens of the second copy, on the token
    after the same token in the first copy (induction), and on the token before.
    """
    generator, n = torch.Generator().manual_seed(SEED), COPIED
    some = torch.rand(DRAWS, model.config.vocabulary - 1, generator=generator)
    copy = 1 + some.argsort(dim=1)[:, :n]  # no token twice
    x = torch.cat([torch.full((DRAWS, 1), START), copy, copy], dim=1)
    x = x.to(model.embedding.weight.device)
    nats = token_nats(model, [x]).view(DRAWS, -1)
    weights, t = attention_weights(model, x), torch.arange(n + 1, 2 * n + 1)
    scores = {"induction": t - n + 1, "previous-token": t - 1}
    best = {
        f"{name}/0": weights[..., t, to].mean(dim=(1, 3)).max().item()
        for name, to in scores.items()
    }
    losses = {"first-copy/0": nats[:, :n], "second-copy/0": nats[:, n + 1 :]}
    return best | {name: of.mean().item() for name, of in losses.items()}


def accuracy(lm: LanguageModel, name: str, k: int) -> float:
    """Return the accuracy of choices among four answers, after k examples.

    Each query has examples of its own.
    """
    task, generator = load_task(name), torch.Generator().manual_seed(SEED)
    prompts, answers = [], []
    for i in torch.randperm(len(task.items), generator=generator)[:QUERIES].tolist():
        others = [item for j, item in enumerate(task.items) if j != i]
        shown = draw_examples(others, k, generator=generator)
        prompts.append(BARE.prompt([others[j] for j in shown], task.items[i][0]))
        given = candidates(task, i, count=ANSWERS, generator=generator)
        answers.append([BARE.answer(y) for y in given])
    return choice_accuracy(score_answers(lm, prompts, answers).log_p).mean().item()


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.what == "corpus":
        write_corpus(options.folder, load_installed())
        return
    begin, device = time.perf_counter(), runtime.pick_device()
    ranks.processes(device)
    given = {"steps": options.steps, "batch_size": options.batch}
    given = {name: value for name, value in given.items() if value}
    size = replace(SIZES[options.what], **given)
    folder, corpus = options.folder / options.what, read_corpus(options.folder)
    parameters = {"size": options.what, **asdict(size), "text": "installed"}
    parameters |= {"seed": SEED, "device": device.type}
    name = runtime.device_name(device)
    record = new_record("inside_the_box", parameters, device=name)
    seconds = train(folder, size, corpus, device)
    if ranks.rank() > 0:
        return
    metrics = record["metrics"]
    for steps in kept_after(size.steps):
        lm = load_trained(path_of(folder, steps)).to(device)
        seen = steps * size.batch_size * size.context
        metrics[f"step-{steps}/tokens/0/train"] = float(seen)
        found = look(lm, corpus.test)
        metrics |= {f"step-{steps}/{key}": value for key, value in found.items()}
    weights = sum(p.numel() for p in lm.model.parameters())
    metrics |= {
        "model/parameters/0/train": float(weights),
        "model/seconds/0/train": seconds,
        "corpus/tokens/0/train": float(len(corpus.train)),
        "corpus/tokens/0/test": float(len(corpus.test)),
    }
    record["status"], record["seconds"] = "finished", time.perf_counter() - begin
    record["peak_memory_mb"] = runtime.peak_memory_mb(device)
    write_record(folder / "record.json", record)
    print(f"{seen / seconds:,.0f} tokens/s; {json.dumps(found)}")


def parser() -> argparse.ArgumentParser:
    about = argparse.ArgumentParser(prog="tools.base_model", description=__doc__)
    about.add_argument("folder", type=Path)
    about.add_argument("what", choices=["corpus", *SIZES])
    about.add_argument("--steps", type=int, help="other than those of the size")
    about.add_argument("--batch", type=int, help="windows in a step")
    return about


if __name__ == "__main__":
    main()
