"""Make the data of three of the interactive figures, and the book's cover.

``python -m tools.widget_records``, run on a clean checkout, writes ``results/widgets``:
an encoder, which is pretrained here as in the chapter on contrastive learning; the
silhouettes that go with it into the page, and how often it finds the correct class; two
views of each of eight images; and the next-token probabilities of SmolLM2 after a few
prompts. ``images/cover.png`` shows the representation of the same encoder. It takes
about three minutes on two cores.
"""

import contextlib
import heapq
import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.manifold import TSNE
from torch import nn

from fmkit import runtime
from fmkit.assets import fetch
from fmkit.augment import ViewConfig, two_views
from fmkit.book import drawing
from fmkit.book.palette import ANIMAL_COLOURS
from fmkit.data.load import load_images
from fmkit.losses import nt_xent_loss
from fmkit.models.pretrained import load_gguf
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.models.saved import load_resnet, save_resnet
from fmkit.progress import progress
from fmkit.runs.record import Run
from fmkit.train import minibatches, train, warmup_cosine

ROOT = Path(__file__).resolve().parents[1]
RESULTS, IMAGES = ROOT / "results" / "widgets", ROOT / "images"
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


def pretrain(train_set, *, steps, seed):
    """Pretrain a network; return it and both views of the eight images."""
    images, labels, classes = train_set.images, train_set.labels, [*train_set.classes]
    config = ViewConfig(
        **{"size": images.shape[-1], "area": (0.3, 1.0), "ratio": (3 / 4, 4 / 3)},
        flip=0.5,
    )
    rng = torch.Generator().manual_seed(seed)
    runtime.seed_weights(seed)
    phi = ResNet(ResNetConfig(images.shape[1], (32, 64, 128), (1, 1, 1), 2))
    head = nn.Sequential(nn.Linear(phi.m, phi.m), nn.ReLU(), nn.Linear(phi.m, phi.m))
    whole = nn.Sequential(phi, head)
    eight = [int((labels == classes.index(name)).nonzero()[0]) for name in CLASSES]
    views = two_views(images[eight], config, generator=rng).chunk(2)

    def loss_of(batch):
        views = two_views(images[batch], config, generator=rng)
        return nt_xent_loss(*whole(views).chunk(2), tau=0.1)

    steppers = torch.optim.AdamW(whole.parameters(), lr=2e-3)
    batches = minibatches(len(images), batch_size=128, generator=rng)
    options = {"modules": [whole], "steps": steps, "schedule": warmup_cosine(0.1)}
    records = train(loss_of, batches, steppers, **options)
    for _ in progress(records, bar="pretraining"):
        pass
    return phi.eval(), views


def write_views(views, path):
    """Write all views as one grey image: the first ones in a row, the second below."""
    rows = [torch.cat([*x[:, 0]], dim=1) for x in views]
    pixels = (255 * torch.cat(rows)).round().byte().numpy()
    Image.fromarray(pixels).quantize(16).save(path, optimize=True)


def write_cover(phi, test_set, path, *, columns=24, rows=9, seed=0):
    """Draw test images on a grid, so that images of similar representations are close.

    Each is drawn at twice its size, for screens with two pixels to a CSS pixel. t-SNE
    maps the representations into the plane. Each image is then assigned to one
    cell of the grid, with the least sum of squared distances. Colours are classes,
    which the network was not trained on.
    """
    rng = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(test_set.images), generator=rng)[: rows * columns]
    with torch.no_grad():
        z = F.normalize(phi(test_set.images[some].float() / 255), dim=1)
    places = TSNE(metric="cosine", init="pca", random_state=seed).fit_transform(z)
    ranks = places.argsort(axis=0).argsort(axis=0) / len(places)
    cells = torch.cartesian_prod(torch.arange(columns), torch.arange(rows))
    centres = (cells + 0.5) / torch.tensor([columns, rows])
    image_of, cell_of = linear_sum_assignment(cdist(ranks, centres, "sqeuclidean"))
    large = F.interpolate(test_set.images[some].float(), scale_factor=2, mode="bicubic")
    large = (0.5 + 1.8 * (large / 255 - 0.5)).clamp(0, 1)  # or outlines were blurred
    large = 255 / 4 * (4 * large).round()  # few shades, so that the file is small
    side = large.shape[-1]
    page = np.zeros((rows * side, columns * side, 4), dtype=np.uint8)
    for i, cell in zip(image_of, cell_of, strict=True):
        x, y = (side * cells[cell]).tolist()
        place = np.s_[y : y + side, x : x + side]
        page[place][..., :3] = ImageColor.getrgb(
            ANIMAL_COLOURS[test_set.labels[some[i]]]
        )
        page[place][..., 3] = large[i, 0].numpy()
    Image.fromarray(page).quantize(64, method=Image.Quantize.FASTOCTREE).save(
        path, optimize=True, dpi=(200, 200)
    )


def nearest(run, known, test_set):
    """Record how often the nearest silhouettes are of the class of a test image.

    A metric is called ``encoder/nearest/mirror/test``: the share of mirrored test
    images whose nearest silhouette by the encoder has the same class. With ``vote`` it
    is the class of most of the nearest six, and ``same`` is the share whose nearest
    silhouette is that of the unchanged image.
    """
    before = {}
    for change, function in drawing.CHANGES.items():
        for way, cosines in known.cosines(function(test_set.images)).items():
            found = cosines.topk(drawing.NEAREST, dim=1).indices
            labels = known.labels[found]
            before.setdefault(way, found[:, 0])
            shares = {
                "nearest": labels[:, 0] == test_set.labels,
                "vote": drawing.vote(labels) == test_set.labels,
                "same": found[:, 0] == before[way],
            }
            for name, share in shares.items():
                value = share.double().mean().item()
                run.metric(f"{way}/{name}/{change}/test", value)


def next_words(run, lm, prompt):
    """Record next-token probabilities at the most probable continuations of a prompt.

    A metric is called ``prompt<tab>token<tab>…``: the probability of its last token
    after the prompt and the other tokens.
    """
    start = lm.tokenizer.encode(prompt).ids
    queue = [(-1.0, (), (prompt,))]  # minus the probability, tokens, their texts
    for _ in range(ASKED):
        likely, path, names = heapq.heappop(queue)
        with torch.no_grad():
            u = lm.model(torch.tensor([[*start, *path]]))[0, -1]
        p = u.double().softmax(-1)
        for share, token in zip(*map(torch.Tensor.tolist, p.topk(KEPT)), strict=True):
            longer = (*names, lm.tokenizer.decode([token], skip_special_tokens=False))
            run.metric("\t".join(longer), share)
            heapq.heappush(queue, (likely * share, (*path, token), longer))


def main():
    """Make the record, the views and the cover, then copy them to their places."""
    # In a temporary folder first, because a record states whether the checkout is clean
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        _images(made, steps=660, seed=0)
        _record(made / "drawing.json", _drawing, seed=0)
        _record(made / "next_words.json", _of_words, seed=0)
        RESULTS.mkdir(parents=True, exist_ok=True)
        for path in made.iterdir():
            shutil.copy(path, IMAGES if path.name == "cover.png" else RESULTS)


def _record(path, work, **parameters):
    """Write the record of one run of `work`."""
    os.environ["FMKIT_RECORD"] = str(path)
    parameters |= {"device": "cpu"}
    lines = [f"{name}: {type(x).__name__} = {x!r}" for name, x in parameters.items()]
    run = Run("widgets", {**parameters, "In": ["\n".join(lines)]})
    work(run, path.parent, **parameters)
    with contextlib.redirect_stdout(io.StringIO()):  # the card would be printed as HTML
        run.card()


def _images(folder, *, steps, seed):
    train_set, test_set = load_images("animals", device="cpu")
    phi, views = pretrain(train_set, steps=steps, seed=seed)
    save_resnet(folder / "encoder.safetensors", phi)
    write_views(views, folder / "views.png")
    write_cover(phi, test_set, folder / "cover.png")


def _drawing(run, folder, *, seed, device):
    train_set, test_set = load_images("animals", device=device)
    drawing.write_sheet(train_set, test_set, folder / drawing.SHEET, seed=seed)
    phi = load_resnet(folder / "encoder.safetensors")
    _, images = drawing.read_sheet(folder / drawing.SHEET)
    for name, value in drawing.errors(phi, images, test_set.images).items():
        run.metric(f"rounded/{name}", value)
    nearest(run, drawing.gallery(drawing.rounded(phi), images), test_set)


def _of_words(run, folder, *, seed, device):
    lm = load_gguf(*fetch("smollm2-135m-instruct-q4").values())
    lm = lm.to(device).packed()
    for prompt in progress(PROMPTS, bar="next words", total=len(PROMPTS)):
        next_words(run, lm, prompt)


if __name__ == "__main__":
    main()
