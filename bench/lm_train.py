"""Training of a small language model: tokens a second, and seconds to a given loss.

The shape is that of nanoGPT's laptop example: 4 layers, 4 heads, width 128, context 64,
batch 12, characters of tinyshakespeare, on the CPU. The peer is transformers'
`GPT2LMHeadModel` of that shape in a plain loop with AdamW. Ours is not GPT-2, so our
Transformer is compared first with transformers' Llama on the same weights: loss and
gradient of one step in float64. Then ours is timed against both; the ratio is that to
GPT-2.

Last, `seconds_to_1_88`: how long a model of ours, with no more parameters, trains until
its loss on the last tenth of the text is 1.88 nats. The text is split as nanoGPT splits
it; evaluation is not counted. With AdamW in place of Muon it is run to the same loss.
"""

import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from bench import report, side_by_side
from bench.decode import peer_of
from fmkit import runtime
from fmkit.data.text import load_corpus
from fmkit.data.tokens import characters, consecutive, encode, pack, windows
from fmkit.evaluate import token_nats
from fmkit.losses import next_token_loss
from fmkit.models.transformer import Transformer, TransformerConfig
from fmkit.muon import Muon
from fmkit.train import constant, train, warmup_cosine

CONTEXT, BATCH, STEPS, ROUNDS = 64, 12, 30, 7
LAPTOP = {"width": 128, "layers": 4, "heads": 4, "kv_heads": 4, "hidden": 336}
QUICK = {"width": 96, "layers": 3, "heads": 3, "kv_heads": 3, "hidden": 256}
QUICK_BATCH, TARGET, TOLERANCE = 24, 1.88, 1e-6


def our_model(vocabulary: int, shape: dict[str, int]) -> Transformer:
    runtime.seed_weights(0)
    config = TransformerConfig(vocabulary=vocabulary, context=CONTEXT, **shape)
    return Transformer(config)


def our_steps(model, optimizer, batches, *, steps: int, schedule=constant):
    """Records of `steps` steps, as a chapter takes them."""

    def loss_of(x):
        return next_token_loss(model(x[:, :-1]), x[:, 1:])

    options = {"modules": [model], "steps": steps, "schedule": schedule}
    return train(loss_of, batches, optimizer, **options)


def peer_steps(model, optimizer, batches, *, steps: int) -> None:
    """The loop one writes by hand around a model of transformers."""
    for _ in range(steps):
        x = next(batches)[:, :-1].contiguous()
        optimizer.zero_grad()
        loss = model(input_ids=x, labels=x).loss
        loss.backward()
        optimizer.step()
        loss.item()


def adamw(model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99))


def gap_of_one_step(model: Transformer, x: torch.Tensor) -> float:
    """The larger difference to Llama, in the loss or in the embedding's gradient."""
    ours, peer = model.double(), peer_of(model).double()
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
    for record in our_steps(model, optimizer, batches, **options):
        if record.step + 1 == steps or (record.step + 1) % every == 0:
            seconds += time.perf_counter() - start
            loss = token_nats(model, held_out, bar="loss").mean().item()
            if loss <= TARGET:
                break
            start = time.perf_counter()
    return seconds, loss, record.step + 1


def main() -> None:
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
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=V,
            n_positions=CONTEXT,
            n_embd=128,
            n_layer=4,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    peers = {"transformers' Llama": peer_of(ours), "transformers' GPT-2": gpt2}
    fused = torch.optim.AdamW(ours.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)

    def run_ours() -> None:
        for _ in our_steps(ours, fused, batches, steps=STEPS):
            pass

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

    muon = seconds_to_target(
        lambda m: Muon.of(m, lr=0.012), text, V, steps=350, every=10
    )
    print(f"Muon: {muon[1]:.3f} nats after {muon[0]:.1f} s, {muon[2]} steps")

    def plain(model):
        rate = {"lr": 6e-3, "betas": (0.9, 0.98), "weight_decay": 0.05}
        return torch.optim.AdamW(model.parameters(), fused=True, **rate)

    other = seconds_to_target(plain, text, V, steps=1200, every=50)
    print(f"AdamW: {other[1]:.3f} nats after {other[0]:.1f} s, {other[2]} steps")
    for name, (seconds, loss, _) in {"": muon, "adamw_": other}.items():
        if loss <= TARGET:
            case[f"{name}seconds_to_1_88"] = seconds
    report("lm_train", case, equal=gap <= TOLERANCE, device=torch.device("cpu"))


if __name__ == "__main__":
    main()
