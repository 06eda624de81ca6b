"""Training of a language model: tokens a second, and seconds to a given loss.

On a CPU the shape is that of nanoGPT's laptop example: 4 layers, 4 heads, width 128,
context 64, batch 12, characters of tinyshakespeare. The peer is transformers'
`GPT2LMHeadModel` of that shape in a plain loop with AdamW. Ours is not GPT-2, so our
Transformer is compared first with transformers' Llama on the same weights: loss and
gradient of one step in float64. Then ours is timed against both; the ratio is that to
GPT-2.

Last, `seconds_to_1_88`: how long a model of ours, with no more parameters, trains until
its loss on the last tenth of the text is 1.88 nats. The text is split as nanoGPT splits
it; evaluation is not counted. With AdamW in place of Muon it is run to the same loss.

On CUDA, or with ``--gpt``, the shape is that of GPT-2's 124 M parameters: 12 layers, 12
heads, width 768, context 1,024, a vocabulary of 50,304 and 65,536 tokens a step, fewer
where memory is short. Both are timed with AdamW, fused, under the same autocast and not
compiled; then ours alone, not compiled and compiled, with AdamW and with Muon, and with
each kernel of attention that torch can be made to take. Tokens are random.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config, GPT2LMHeadModel

from bench import SMALL, ceiling, report, side_by_side, timed
from bench.decode import peer_of
from fmkit import runtime
from fmkit.data.text import load_corpus
from fmkit.data.tokens import characters, consecutive, encode, pack, windows
from fmkit.evaluate import token_nats
from fmkit.losses import next_token_loss
from fmkit.models.transformer import Transformer, TransformerConfig
from fmkit.muon import Muon
from fmkit.train import constant, train, warmup_cosine

CONTEXT, BATCH = 64, 12
STEPS, ROUNDS = (3, 1) if SMALL else (30, 7)
LAPTOP = {"width": 128, "layers": 4, "heads": 4, "kv_heads": 4, "hidden": 336}
QUICK = {"width": 96, "layers": 3, "heads": 3, "kv_heads": 3, "hidden": 256}
QUICK_BATCH, TARGET, TOLERANCE = 24, 1.88, 1e-6
GPT = {"width": 768, "layers": 12, "heads": 12, "kv_heads": 12, "hidden": 2048}
GPT_VOCABULARY, GPT_CONTEXT, GPT_BATCH, GPT_STEPS = 50_304, 1024, 64, 10
if SMALL:
    GPT = {"width": 64, "layers": 2, "heads": 2, "kv_heads": 2, "hidden": 128}
    GPT_VOCABULARY, GPT_CONTEXT, GPT_BATCH, GPT_STEPS = 500, 32, 4, 2
LOGITS = 16  # bytes of memory for each logit of a step: two of float32, their gradients
AIM = 460_000  # tokens a second of 124 M parameters on an H200: half its products' rate
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def our_model(
    vocabulary: int, shape: dict[str, int], *, context: int = CONTEXT
) -> Transformer:
    runtime.seed_weights(0)
    return Transformer(
        TransformerConfig(vocabulary=vocabulary, context=context, **shape)
    )


def peer_gpt2(
    vocabulary: int, shape: dict[str, int], *, context: int = CONTEXT
) -> GPT2LMHeadModel:
    """transformers' GPT-2 without dropout."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=context,
            n_embd=shape["width"],
            n_layer=shape["layers"],
            n_head=shape["heads"],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


class WithLoss(nn.Module):
    """A model and its loss as one module, so that both are compiled together."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return next_token_loss(self.model(x[:, :-1]), x[:, 1:])


def our_steps(loss_of, optimizer, batches, *, steps: int, schedule=constant):
    """Records of `steps` steps, as a chapter takes them."""
    options = {"modules": [loss_of], "steps": steps, "schedule": schedule}
    return train(loss_of, batches, optimizer, **options)


def peer_steps(model, optimizer, batches, *, steps: int) -> None:
    """The loop one writes by hand around a model of transformers."""
    for _ in range(steps):
        x = next(batches)[:, :-1].contiguous()
        optimizer.zero_grad()
        with runtime.autocast(x.device):
            loss = model(input_ids=x, labels=x).loss
        loss.backward()
        optimizer.step()
        loss.item()


def adamw(model, *, fused: bool = False) -> torch.optim.Optimizer:
    rate = {"lr": 1e-3, "betas": (0.9, 0.99)}
    return torch.optim.AdamW(model.parameters(), fused=fused, **rate)


def gap_of_one_step(model: Transformer, x: torch.Tensor) -> float:
    """The larger difference to Llama, in the loss or in the embedding's gradient."""
    ours, peer = model.double(), peer_of(model).to(x.device).double()
    loss = next_token_loss(ours(x[:, :-1]), x[:, 1:])
    theirs = peer(input_ids=x[:, :-1]).logits
    other = torch.nn.functional.cross_entropy(theirs.flatten(0, 1), x[:, 1:].flatten())
    loss.backward()
    other.backward()
    own, their = ours.embedding.weight.grad, peer.model.embed_tokens.weight.grad
    gaps = [abs(loss.item() - other.item()), ((own - their).norm() / own.norm()).item()]
    return max(gaps)


def seconds_to_target(
    optimizer_of, text: dict[str, torch.Tensor], V: int, *, steps: int, every: int
) -> tuple[float, float, int]:
    """Seconds of training, the loss at its end, and the number of steps."""
    model = our_model(V, QUICK)
    generator = torch.Generator().manual_seed(0)
    batches = windows(
        text["train"], context=CONTEXT, batch_size=QUICK_BATCH, generator=generator
    )
    optimizer = optimizer_of(model)
    held_out = consecutive(text["test"], context=CONTEXT, batch_size=128)
    seconds, start = 0.0, time.perf_counter()
    options = {"steps": steps, "schedule": warmup_cosine(0.05)}
    for record in our_steps(WithLoss(model), optimizer, batches, **options):
        if record.step + 1 == steps or (record.step + 1) % every == 0:
            seconds += time.perf_counter() - start
            loss = token_nats(model, held_out, bar="loss").mean().item()
            if loss <= TARGET:
                break
            start = time.perf_counter()
    return seconds, loss, record.step + 1


def laptop() -> None:
    """The small model, on the CPU."""
    texts = [
        document.text for part in load_corpus("tinyshakespeare") for document in part
    ]
    tokenizer = characters(texts)
    V = tokenizer.get_vocab_size()
    pairs = zip(("train", "test"), texts, strict=True)
    text = {name: pack([encode(tokenizer, t)], start=0)[1:] for name, t in pairs}
    generator = torch.Generator().manual_seed(0)
    options = {"context": CONTEXT, "batch_size": BATCH, "generator": generator}
    batches = windows(text["train"], **options)
    gap = gap_of_one_step(our_model(V, LAPTOP), next(batches))
    print(f"loss and gradient differ from Llama's by at most {gap:.1e} in float64")

    ours = our_model(V, LAPTOP)
    peers = {
        "transformers' Llama": peer_of(ours),
        "transformers' GPT-2": peer_gpt2(V, LAPTOP),
    }
    run_ours = runner(WithLoss(ours), adamw(ours, fused=True), batches, steps=STEPS)
    for name, peer in peers.items():
        optimizer = adamw(peer.train())

        def run_peer(peer=peer, optimizer=optimizer) -> None:
            peer_steps(peer, optimizer, batches, steps=STEPS)

        run_ours()  # both warm
        run_peer()
        case = side_by_side(run_ours, run_peer, rounds=ROUNDS, label=name)
    tokens = STEPS * BATCH * CONTEXT
    for name, seconds in (("ours", case["ours"]), ("GPT-2", case["peer"])):
        print(f"{name}: {tokens / seconds:,.0f} tokens a second")
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in peers.items()}
    quick = sum(p.numel() for p in our_model(V, QUICK).parameters())
    print(f"parameters: {count}, of the quick one {quick:,}")
    if not SMALL:
        case |= times_to_target(text, V)
    report("lm_train", case, equal=gap <= TOLERANCE, device=torch.device("cpu"))


def times_to_target(text: dict[str, torch.Tensor], V: int) -> dict[str, float]:
    """Seconds to the target with Muon and with AdamW, where it was reached."""

    def plain(model):
        rate = {"lr": 6e-3, "betas": (0.9, 0.98), "weight_decay": 0.05}
        return torch.optim.AdamW(model.parameters(), fused=True, **rate)

    def muon(model):
        return Muon.of(model, lr=0.012)

    reached = {}
    for name, optimizer_of, steps, every in (
        ("", muon, 350, 10),
        ("adamw_", plain, 1200, 50),
    ):
        seconds, loss, taken = seconds_to_target(
            optimizer_of, text, V, steps=steps, every=every
        )
        print(
            f"{optimizer_of.__name__}: {loss:.3f} nats after {seconds:.1f} s, {taken} "
            "steps"
        )
        if loss <= TARGET:
            reached[f"{name}seconds_to_1_88"] = seconds
    return reached


def runner(
    loss_of: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator, *, steps
) -> Callable[[], None]:
    """A function that takes `steps` steps of ours."""

    def run() -> None:
        for _ in our_steps(loss_of, optimizer, batches, steps=steps):
            pass

    return run


def ready(run: Callable[[], None]) -> Callable[[], None]:
    """Call `run` once, which warms and compiles it."""
    run()
    return run


def against_gpt2(plain, batches: Iterator, device: torch.device) -> dict[str, float]:
    """Time ours and GPT-2 in turns. GPT-2 leaves the device afterwards."""
    peer = peer_gpt2(GPT_VOCABULARY, GPT, context=GPT_CONTEXT).to(device).train()
    optimizer = adamw(peer, fused=runtime.fused(device))

    def run_peer() -> None:
        peer_steps(peer, optimizer, batches, steps=GPT_STEPS)

    rounds, label = 1 if SMALL else 3, "not compiled, AdamW"
    return side_by_side(plain, ready(run_peer), rounds=rounds, label=label)


def gpt(device: torch.device) -> None:
    """The model of 124 M parameters; on a CPU only to see that it runs."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(GPT_VOCABULARY, (2**20,), generator=generator).to(device)
    batch, V, T = GPT_BATCH, GPT_VOCABULARY, GPT_CONTEXT
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        while batch > 1 and batch * T * V * LOGITS > 0.7 * free:
            batch //= 2
    options = {"context": T, "batch_size": batch, "generator": generator}
    batches = windows(text, **options)
    gap = gap_of_one_step(our_model(V, LAPTOP).to(device), text[None, :CONTEXT])
    print(f"loss and gradient differ from Llama's by at most {gap:.1e} in float64")

    ours = our_model(V, GPT, context=T).to(device).train()
    adam = adamw(ours, fused=runtime.fused(device))
    plain = ready(runner(WithLoss(ours), adam, batches, steps=GPT_STEPS))
    case = against_gpt2(plain, batches, device)
    tokens = GPT_STEPS * batch * T
    weights = sum(p.numel() for p in ours.parameters())
    flop = 6 * weights + 12 * GPT["layers"] * GPT["width"] * T  # a token's, Kaplan 2020
    low = device.type == "cuda" and runtime.computes_bfloat16(device)
    limit = ceiling(device, torch.bfloat16 if low else torch.float32)

    def show(name: str, seconds: float) -> None:
        rate = tokens / seconds
        share = rate * flop / 1e9 / limit
        print(f"{name:32} {rate:9,.0f} tokens/s, {share:.0%} of {limit:,.0f} GFLOP/s")
        case[f"{name.replace(' ', '_')}_tokens_per_s"] = rate

    print(f"{weights:,} parameters, {batch * T:,} tokens a step")
    show("plain", case["ours"])
    show("GPT-2", case["peer"])
    for name, kernel in KERNELS.items():
        try:
            with sdpa_kernel(kernel):
                ready(plain)
                show(f"plain {name}", timed(plain)[0])
        except RuntimeError as error:
            print(f"{name}: {str(error).splitlines()[0]}")
    muon = Muon.of(ours, lr=1e-3)
    run = ready(runner(WithLoss(ours), muon, batches, steps=GPT_STEPS))
    show("plain Muon", timed(run)[0])
    whole = runtime.compiled(WithLoss(ours))
    for name, optimizer in (("compiled", adam), ("compiled Muon", muon)):
        run = ready(runner(whole, optimizer, batches, steps=GPT_STEPS))
        show(name, statistics.median(timed(run)[0] for _ in range(3)))
    print(f"the aim on an H200: {AIM:,} tokens/s")
    report("lm_train", case, equal=gap <= TOLERANCE, device=device)


if __name__ == "__main__":
    on = runtime.pick_device()
    gpt(on) if on.type == "cuda" or "--gpt" in sys.argv[1:] else laptop()
