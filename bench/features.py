"""Representations of 10,000 animals by EfficientNet-Lite0 at 96 px, in float32.

The peer is the package `efficientnet_lite_pytorch` with the same weights, as one would
use it: batches of 64, the default layout. Times are for 10,000 images.
"""

import warnings

import torch
import torch.nn.functional as F

from bench import report, side_by_side
from fmkit import runtime
from fmkit.adapt import frozen_outputs
from fmkit.assets import fetch, load_array
from fmkit.models.efficientnet import load_efficientnet_lite0

SIZE, ROUNDS = 96, 3
TOLERANCE = 1e-4  # relative to the largest number, about 6


def main() -> None:
    device = runtime.pick_device()
    [weights] = fetch("efficientnet-lite0").values()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's age
        from efficientnet_lite_pytorch import EfficientNet

        peer = EfficientNet.from_name("efficientnet-lite0")
    peer.load_state_dict(torch.load(weights, weights_only=True))
    peer = peer.eval().to(device)
    phi, _ = load_efficientnet_lite0(weights, size=SIZE)
    phi = phi.to(device)
    images = torch.tensor(load_array(fetch("animals")["images.gz"])).unsqueeze(1)
    images = images.to(device)

    @torch.no_grad()
    def theirs():
        rows = []
        for batch in images.split(64):
            x = F.interpolate(batch.float() / 255, (SIZE, SIZE), mode="bilinear")
            x = ((x * 255 - 127) / 128).expand(-1, 3, -1, -1).contiguous()
            rows.append(peer.extract_features(x).mean(dim=(2, 3)))
        return torch.cat(rows)

    def ours():
        return frozen_outputs(phi, images, bar="ours")

    expected = theirs()
    gap = ((ours() - expected).abs().max() / expected.max()).item()
    print(f"representations differ by at most {gap:.1e} of the largest number")
    label = f"{len(images):,} images"
    case = side_by_side(ours, theirs, rounds=ROUNDS, label=label)
    report("features", case, equal=gap <= TOLERANCE, device=device)


if __name__ == "__main__":
    main()
