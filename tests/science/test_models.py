"""Networks: equal to slow references, and to another library on the same weights."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from reference import notes as reference
from support.bounds import additions_of, rounding
from support.unchecked import unchecked
from torch import nn

from fmkit.assets import fetch
from fmkit.data.tokens import PADDING
from fmkit.models import bert, resnet, transformer
from fmkit.models.efficientnet import (
    Block,
    ConvNorm,
    EfficientNetLite0,
    load_efficientnet_lite0,
)
from fmkit.models.every_layer import EveryLayer
from fmkit.models.resnet import ResNet, ResNetConfig


def with_statistics(model, rng):
    """Batch norm as after training: nothing of it is 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(len(tensor), generator=rng))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(len(tensor), generator=rng) / 2)
    return model.eval()


@pytest.fixture
def small(rng):
    config = ResNetConfig(widths=(3, 4), blocks=(1, 2))
    torch.manual_seed(0)
    return with_statistics(ResNet(config), rng).double()


def conv_norm(x, conv, bn):
    """Of one picture, by the loops."""
    out = []
    for o in range(conv.out_channels):
        kernel, stride = conv.weight[o].tolist(), conv.stride[0]
        h = reference.convolution(x, kernel, stride, conv.padding[0])
        numbers = (bn.running_mean, bn.running_var, bn.weight, bn.bias)
        out.append(reference.normalized(h, *(t[o].item() for t in numbers), bn.eps))
    return out


def relu(x):
    return [[[max(value, 0.0) for value in row] for row in channel] for channel in x]


def plus(a, b):
    return (torch.tensor(a, dtype=torch.float64) + torch.tensor(b)).tolist()


def test_resnet_is_the_loops(small, rng):
    """Figure 2 of He et al. 2016: relu(conv(relu(conv(x))) + shortcut(x)).

    In the notes: representation.
    """
    images = torch.randint(256, (2, 1, 9, 8), generator=rng, dtype=torch.uint8)
    with torch.no_grad():
        ours = small(small.prepare(images).double())
    for image, phi_x in zip(images.tolist(), ours.tolist(), strict=True):
        x = [[[2 * value / 255 - 1 for value in row] for row in image[0]]]
        h = relu(conv_norm(x, small.stem[0], small.stem[1]))
        for block in small.stages:
            inner = relu(conv_norm(h, block.conv1, block.bn1))
            beside = conv_norm(h, *block.shortcut) if len(block.shortcut) else h
            h = relu(plus(conv_norm(inner, block.conv2, block.bn2), beside))
        mean = [sum(map(sum, c)) / (len(c) * len(c[0])) for c in h]
        # prepare divides in float32
        assert phi_x == pytest.approx(mean, rel=1e-5, abs=1e-6)


def test_resnet_s_shape():
    model = ResNet(ResNetConfig())
    assert model.m == ResNetConfig().m == 128
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 128)
    assert sum(p.numel() for p in model.parameters()) == 306_784
    blocks = [len(block.shortcut) for block in model.stages]
    assert blocks == [0, 2, 2]  # only where the shape changes
    longer = ResNet(ResNetConfig(widths=(4, 8), blocks=(2, 2)))
    assert [block.conv1.stride[0] for block in longer.stages] == [1, 1, 2, 1]


def test_resnet_18_for_small_pictures_by_configuration():
    widths, blocks = (64, 128, 256, 512), (2, 2, 2, 2)
    model = ResNet(
        ResNetConfig(channels=3, widths=widths, blocks=blocks, stem_stride=1)
    )
    # He et al.'s, less 513,000 of the head; a stem of 3 by 3 in place of 7 by 7
    expected = 11_689_512 - 513_000 - 3 * 64 * (49 - 9)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 512)


def test_every_parameter_of_resnet_learns(rng):
    model = ResNet(ResNetConfig(widths=(4, 8), blocks=(1, 2)))
    model(torch.rand(4, 1, 12, 12, generator=rng)).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


def test_in_eval_mode_pictures_do_not_see_each_other(small, rng):
    x = torch.rand(4, 1, 9, 9, generator=rng, dtype=torch.float64)
    with torch.no_grad():
        alone = torch.cat([small(x[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(small(x), alone, rtol=1e-12, atol=1e-12)


def test_prepare():
    model = ResNet(ResNetConfig())
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert model.prepare(images).flatten().tolist() == pytest.approx([0, 0.2, 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_resnet_in_half_precision(small, rng, dtype):
    x = torch.rand(4, 1, 9, 9, generator=rng, dtype=torch.float64)
    half = copy.deepcopy(small).to(dtype)
    with torch.no_grad():
        found = half(x.to(dtype)).double()
        torch.testing.assert_close(found, small(x), rtol=0, atol=0.1)


def test_wrong_resnets():
    with pytest.raises(ValueError, match="blocks must have one count for each of"):
        ResNet(ResNetConfig(widths=(4, 8), blocks=(1,)))
    grey = ResNet(ResNetConfig())
    message = r"images must have 1 channel\(s\), as the network has, got 3"
    with pytest.raises(ValueError, match=message):
        grey.prepare(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))


# EfficientNet-Lite0


@pytest.mark.parametrize(("size", "stride"), [(8, 2), (9, 2), (8, 1), (7, 1)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("groups", [1, 4])
def test_conv_norm_in_both_modes_is_convolution_then_norm(
    rng, size, stride, kernel, groups
):
    shape = {"kernel": kernel, "stride": stride, "groups": groups}
    layer = with_statistics(ConvNorm(4, 8, **shape, relu=True), rng).double()
    x = 3 * torch.randn(2, 4, size, size, generator=rng, dtype=torch.float64)
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before, after = total // 2, total - total // 2  # TensorFlow's SAME
    padded = F.pad(x, (before, after, before, after))
    h = F.conv2d(padded, layer.conv.weight, stride=stride, groups=groups)
    folded = layer(x)
    assert folded.shape[-1] == -(-size // stride)
    torch.testing.assert_close(folded, layer.bn(h).clamp(0, 6), rtol=1e-10, atol=1e-10)
    trained = layer.train()(x)
    expected = F.batch_norm(
        h, None, None, layer.bn.weight, layer.bn.bias, training=True, eps=1e-3
    )
    torch.testing.assert_close(trained, expected.clamp(0, 6), rtol=1e-10, atol=1e-10)


def test_the_folded_norm_has_the_gradient_of_the_two_layers(rng):
    layer = ConvNorm(3, 4, kernel=3, stride=2, groups=1, relu=False)
    layer = with_statistics(layer, rng).double()
    x = torch.randn(2, 3, 6, 6, generator=rng, dtype=torch.float64)
    slow = layer.bn(layer.conv(F.pad(x, (0, 1, 0, 1)))).square().sum()
    expected = torch.autograd.grad(slow, [*layer.parameters()])
    found = torch.autograd.grad(layer(x).square().sum(), [*layer.parameters()])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_block_adds_its_input_where_the_shape_allows(rng):
    x = torch.randn(1, 4, 6, 6, generator=rng)
    for width, stride, adds in ((4, 1, True), (4, 2, False), (6, 1, False)):
        block = Block(4, width, expansion=2, kernel=3, stride=stride).eval()
        block.project.bn.weight.data.zero_()  # all that is left is the input
        expected = x if adds else torch.zeros(1, width, 6 // stride, 6 // stride)
        torch.testing.assert_close(block(x), expected)


@pytest.fixture(scope="module")
def weights(asset_cache):
    return fetch("efficientnet-lite0")["efficientnet-lite0.pth"]


@pytest.fixture(scope="module")
def photographs():
    """scikit-learn's: china.jpg and flower.jpg, CC BY 2.0."""
    datasets = pytest.importorskip("sklearn.datasets")
    images = datasets.load_sample_images().images
    return torch.stack([torch.tensor(image) for image in images]).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [96, 224])
def test_imagenet_logits_are_those_of_another_implementation(
    weights, photographs, size
):
    """In the notes: supervised pretraining."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's age
        from efficientnet_lite_pytorch import EfficientNet

        peer = EfficientNet.from_name("efficientnet-lite0")
    peer.load_state_dict(torch.load(weights, weights_only=True))
    phi, U = load_efficientnet_lite0(weights, size=size)
    x = phi.prepare(photographs)
    with torch.no_grad():
        ours = U(phi(x))
        theirs = peer.eval()((x * 255 - 127) / 128)
    additions = additions_of(phi) + additions_of(U)
    error = rounding(additions, size=theirs.abs().max().item())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=error)


def test_imagenet_s_weights_are_all_used(weights):
    """In the notes: last layer."""
    phi, U = load_efficientnet_lite0(weights)
    saved = torch.load(weights, weights_only=True)
    assert len(saved) == len(phi.state_dict()) + len(U.state_dict())
    count = sum(p.numel() for part in (phi, U) for p in part.parameters())
    assert count == 4_652_008
    assert not phi.training
    assert U.weight.shape == (1000, phi.m)


def test_what_imagenet_s_network_says_of_two_photographs(weights, photographs):
    phi, U = load_efficientnet_lite0(weights)
    with torch.no_grad():
        _, flower = U(phi(phi.prepare(photographs))).argmax(dim=1).tolist()
    assert flower == 985  # daisy; the photograph is of a dahlia, which ImageNet lacks


def test_prepare_brings_pictures_to_the_size():
    model = EfficientNetLite0(size=32)
    grey = torch.randint(256, (2, 1, 28, 20), dtype=torch.uint8)
    x = model.prepare(grey)
    assert x.shape == (2, 3, 32, 32)
    assert torch.equal(x[:, 0], x[:, 2])
    assert 0 <= x.min() <= x.max() <= 1
    same = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(model.prepare(same), same.float() / 255)
    flat = torch.full((1, 3, 90, 64), 102, dtype=torch.uint8)  # shrinks one side
    torch.testing.assert_close(model.prepare(flat), torch.full((1, 3, 32, 32), 0.4))


def test_wrong_files_and_pictures(tmp_path):
    torch.save({"_fc.weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth does not hold EfficientNet-Lite0"):
        load_efficientnet_lite0(tmp_path / "x.pth")
    with pytest.raises(ValueError, match="size must be at least 32"):
        EfficientNetLite0(size=16)
    with pytest.raises(ValueError, match="images must have 1 or 3 channels, got 4"):
        EfficientNetLite0().prepare(torch.zeros(1, 4, 32, 32, dtype=torch.uint8))


# Layers


@pytest.mark.parametrize(
    "phi",
    [ResNet(ResNetConfig(channels=3)), EfficientNetLite0(size=32)],
    ids=["resnet", "efficientnet"],
)
def test_networks_choose_their_memory_layout(phi, rng):
    """However images lie in memory: the same layout inside, the same bits outside."""
    last = {"memory_format": torch.channels_last}
    copied = copy.deepcopy(phi.eval())
    assert all(p.is_contiguous(**last) for p in copied.parameters() if p.dim() == 4)
    x = torch.rand(2, 3, 32, 32, generator=rng)
    with torch.no_grad():
        assert all(h.is_contiguous(**last) for h in phi.activations(x))
        assert torch.equal(phi(x), phi(x.contiguous(**last)))


@pytest.mark.parametrize(
    "phi",
    [
        ResNet(ResNetConfig(widths=(3, 4, 5), blocks=(1, 2, 1))),
        EfficientNetLite0(size=32),
    ],
    ids=["resnet", "efficientnet"],
)
def test_layers_are_what_hooks_see_and_end_with_the_representation(phi, rng):
    """Hooks on the last block of every stage, placed by the widths they promise."""
    phi = with_statistics(phi, rng)
    blocks = phi.stages if isinstance(phi, ResNet) else phi.blocks
    last_block = [0, 2, 3] if isinstance(phi, ResNet) else [0, 2, 4, 7, 10, 14, 15]
    modules = [phi.stem, *(blocks[i] for i in last_block)]
    modules += [] if isinstance(phi, ResNet) else [phi.top]
    seen = []
    for module in modules:
        module.register_forward_hook(lambda m, i, out: seen.append(out.mean((2, 3))))
    layers = EveryLayer(phi)
    images = torch.randint(256, (2, 1, 32, 32), generator=rng, dtype=torch.uint8)
    with torch.no_grad():
        parts = layers.split(layers(layers.prepare(images)))
        expected = seen.copy()
        phi_x = phi(phi.prepare(images))
    assert {name: part.shape[1] for name, part in parts.items()} == phi.widths
    for found, hooked in zip(parts.values(), expected, strict=True):
        torch.testing.assert_close(found, hooked, rtol=0, atol=0)
    torch.testing.assert_close([*parts.values()][-1], phi_x, rtol=0, atol=0)


def one_graph(kind):
    """A small network whose signatures are not checked, and an input of it."""
    if kind == "resnet":
        plain = unchecked(resnet)
        config = plain.ResNetConfig(channels=3, widths=(4, 8), blocks=(1, 1))
        return plain.ResNet(config), torch.rand(4, 3, 8, 8)
    shape = {"vocabulary": 20, "context": 12, "width": 8, "layers": 2, "heads": 2}
    tokens = torch.tensor([[1, 2, 3], [4, 5, PADDING]])
    if kind == "bert":
        plain = unchecked(bert)
        model = plain.Bert(plain.BertConfig(types=2, hidden=16, **shape))
        model.forward = model.token_vectors
        return model, tokens
    plain = unchecked(transformer)
    shape |= {"kv_heads": 1, "hidden": 16, "causal": kind == "causal"}
    return plain.Transformer(plain.TransformerConfig(**shape)), tokens.clamp(min=0)


@pytest.mark.parametrize("kind", ["resnet", "causal", "masked", "bert"])
def test_networks_compile_into_one_graph(monkeypatch, kind):
    """With the backend that runs the graph as it is: only breaks are of interest."""
    monkeypatch.setattr("fmkit.runtime.on_host", lambda tensor: False)  # as on a GPU
    model, x = one_graph(kind)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
