"""SimCLR views of colour images of 32 px against kornia's, on the same parameters.

Crop, flip, change of colour, grey. Kornia draws the parameters and both replay them;
then each draws its own, on the CPU as the chapters do, with both of kornia's ways to
crop. Times are for ten batches: of 512 views, on CUDA of 1,024 as in profiles/gpu.yaml.
"""

import torch
from kornia.augmentation import (
    AugmentationSequential,
    ColorJitter,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
)

from bench import SMALL, report, side_by_side
from fmkit import runtime
from fmkit.augment import ViewConfig, Views, random_views, render_views

SIZE, BATCHES, ROUNDS = 32, 2 if SMALL else 10, 1 if SMALL else 9
CONFIG = ViewConfig(
    size=SIZE, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2
)
# A hue is a quotient: where a colour is all but grey, rounding shows in the 4th digit
TOLERANCE = 1e-3


def kornia_of(cropping_mode: str) -> AugmentationSequential:
    """What CONFIG says in kornia's words; colours in our order."""
    return AugmentationSequential(
        RandomResizedCrop(
            (SIZE, SIZE),
            scale=CONFIG.area,
            ratio=CONFIG.ratio,
            cropping_mode=cropping_mode,
        ),
        RandomHorizontalFlip(p=CONFIG.flip),
        ColorJitter(
            CONFIG.brightness,
            CONFIG.contrast,
            CONFIG.saturation,
            CONFIG.hue,
            p=CONFIG.jitter,
            order=(0, 1, 2, 3),
        ),
        RandomGrayscale(p=CONFIG.grey),
        data_keys=["input"],
    )


def views_of(peer: AugmentationSequential) -> Views:
    """The parameters that kornia drew last, as ours.

    Its crops end at the centres of pixels and ours at their edges: a crop of w pixels
    is brought from w - 1 steps to size - 1, here from some width to size.
    """
    crop, flip, jitter, grey = (
        {name: value.cpu() for name, value in item.data.items()}
        for item in peer._params
    )
    first, last = crop["src"][:, 0], crop["src"][:, 2]  # (B, 2), x and y
    step = (last - first) / (SIZE - 1)
    left, top = (first + 0.5 - step / 2).T
    width, height = (SIZE * step).T
    changed = jitter["batch_prob"] > 0.5
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    colours = {
        name: torch.where(changed, jitter[f"{name}_factor"], value)
        for name, value in neutral.items()
    }
    return Views(
        left,
        top,
        width,
        height,
        flip["batch_prob"] > 0.5,
        torch.zeros_like(left),
        **colours,
        grey=grey["batch_prob"] > 0.5,
    )


def main() -> None:
    device = runtime.pick_device()
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)  # kornia draws from the global generator
    batch = 1024 if device.type == "cuda" else 512
    shape = (batch, 3, SIZE, SIZE)
    images = torch.randint(256, shape, generator=generator).byte().to(device)
    peers = {mode: kornia_of(mode) for mode in ("slice", "resample")}

    def times(function):
        def many():
            for _ in range(BATCHES):
                function()

        return many

    gap, cases = 0.0, []
    for mode, peer in peers.items():
        expected = peer(images.float() / 255)
        views, replayed = views_of(peer), peer._params

        def ours(views=views):
            return render_views(images, views, size=SIZE)

        def theirs(peer=peer, replayed=replayed):
            return peer(images.float() / 255, params=replayed)

        gap = max(gap, (ours() - expected).abs().max().item())
        gap = max(gap, (ours() - theirs()).abs().max().item())
        label = f"replayed, kornia by {mode}"
        both = times(ours), times(theirs)
        cases.append(side_by_side(*both, rounds=ROUNDS, label=label))

        def drawn(peer=peer):
            return peer(images.float() / 255)

        ours = times(lambda: random_views(images, CONFIG, generator=generator))
        label = f"drawn, kornia by {mode}"
        cases.append(side_by_side(ours, times(drawn), rounds=ROUNDS, label=label))
    print(f"views differ by at most {gap:.1e}")
    worst = min(cases, key=lambda case: case["ratio"])
    for who in ("ours", "peer"):
        print(f"{who}: {batch * BATCHES / worst[who]:,.0f} views a second")
    worst["views_per_s"] = batch * BATCHES / worst["ours"]
    report("augment", worst, equal=gap <= TOLERANCE, device=device)


if __name__ == "__main__":
    main()
