"""Records behind two of the pictures that answer the hand: run on a clean checkout.

``python tests/picture_numbers.py`` writes ``results/pictures``: the cosines of eight
pictures' views, before and after contrastive pretraining as in its chapter, with the
views themselves, and what SmolLM2 takes for the next token after a few prompts. It
takes about three minutes on two cores.
"""

import contextlib
import heapq
import io
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fmkit import runtime
from fmkit.assets import fetch
from fmkit.augment import ViewConfig, random_views
from fmkit.data.sets import load
from fmkit.generate import packed
from fmkit.losses import nt_xent_loss
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.models.weights import load_gguf
from fmkit.progress import progress
from fmkit.records import Run
from fmkit.train import minibatches, train, warmup_cosine

RESULTS = Path(__file__).resolve().parents[1] / "results" / "pictures"
CLASSES = ("bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "zebra")
PROMPTS = (
    "The capital of France is",
    "The opposite of hot is",
    "Once upon a time, there was a",
    "Two plus two is",
    "My favourite animal is the",
    "The doctor said that",
    "def add(a, b):\n    return",
    "sea otter => loutre de mer, cheese =>",
)
ASKED, KEPT = 60, 5  # places a prompt, in order of probability; tokens at each


def similarities(run, *, steps, seed):
    """Metrics ``trained/cat/dog``, ``untrained/…``: cosines of what the loss sees."""
    images, labels, classes = _train_set()
    config = ViewConfig(
        **{"size": images.shape[-1], "area": (0.3, 1.0), "ratio": (3 / 4, 4 / 3)},
        flip=0.5,
    )
    rng = torch.Generator().manual_seed(seed)
    runtime.seed_weights(seed)
    phi = ResNet(ResNetConfig(images.shape[1], (32, 64, 128), (1, 1, 1), 2))
    head = nn.Sequential(nn.Linear(phi.m, phi.m), nn.ReLU(), nn.Linear(phi.m, phi.m))
    whole = nn.Sequential(phi, head)
    of = [int((labels == classes.index(name)).nonzero()[0]) for name in CLASSES]
    views = [random_views(images[of], config, generator=rng) for _ in range(2)]
    _measure(run, "untrained", whole, views)

    def loss_of(batch):
        pair = [random_views(images[batch], config, generator=rng) for _ in range(2)]
        return nt_xent_loss(*whole(torch.cat(pair)).chunk(2), tau=0.1)

    steppers = torch.optim.AdamW(whole.parameters(), lr=2e-3)
    schedule = warmup_cosine(steps=steps, warmup_steps=steps // 10)
    batches = minibatches(len(images), batch_size=128, generator=rng)
    kept = {"steps": steps, "schedule": schedule, "buffers": whole.buffers()}
    records = train(loss_of, batches, steppers, **kept)
    for _ in progress(records, label="pretraining", total=steps):
        pass
    _measure(run, "trained", whole, views)
    return views


def _train_set():
    train_set, _ = load("animals", size=None, device=torch.device("cpu"))
    return train_set.images, train_set.labels, [*train_set.classes]


def _measure(run, name, whole, views):
    whole.eval()
    with torch.no_grad():
        z_hat, z_tilde = (F.normalize(whole(x), dim=1) for x in views)
    whole.train()
    for i, row in enumerate((z_hat @ z_tilde.T).tolist()):
        for j, cosine in enumerate(row):
            run.metric(f"{name}/{CLASSES[i]}/{CLASSES[j]}", cosine)


def write_views(views, path):
    """All views in one grey picture: a row of the first ones, a row of the second."""
    rows = [torch.cat([*x[:, 0]], dim=1) for x in views]
    pixels = (255 * torch.cat(rows)).round().byte().numpy()
    Image.fromarray(pixels).quantize(16).save(path, optimize=True)


def next_words(run, model, tokenizer, prompt):
    """Metrics ``prompt<tab>token<tab>…``: probabilities of the next token, each given
    those before it, at the most probable places."""
    start = tokenizer.encode(prompt).ids
    queue = [(-1.0, (), (prompt,))]  # minus the probability, tokens, their texts
    for _ in range(ASKED):
        likely, path, names = heapq.heappop(queue)
        with torch.no_grad():
            u = model(torch.tensor([[*start, *path]]))[0, -1]
        p = u.double().softmax(-1)
        for share, token in zip(*map(torch.Tensor.tolist, p.topk(KEPT)), strict=True):
            longer = (*names, tokenizer.decode([token], skip_special_tokens=False))
            run.metric("\t".join(longer), share)
            heapq.heappush(queue, (likely * share, (*path, token), longer))


def main():
    """Write both records, one after the other."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    given = {"steps": 660, "seed": 0, "device": "cpu"}
    run = _begin("similarities", given)
    write_views(similarities(run, steps=660, seed=0), RESULTS / "views.png")
    _finish(run)
    run = _begin("next_words", {"seed": 0, "device": "cpu"})
    model, tokenizer = load_gguf(*fetch("smollm2-135m-instruct-q4").values())
    model = packed(model.eval())
    for prompt in progress(PROMPTS, label="next words", total=len(PROMPTS)):
        next_words(run, model, tokenizer, prompt)
    _finish(run)


def _begin(name, given):
    os.environ["FMKIT_RECORD"] = str(RESULTS / f"{name}.json")
    kinds = {key: type(value) for key, value in given.items()}
    return Run("pictures", {**given, "__annotations__": kinds})


def _finish(run):
    with contextlib.redirect_stdout(io.StringIO()):  # it would print the card as HTML
        run.card()


if __name__ == "__main__":
    main()
