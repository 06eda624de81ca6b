"""Greedy decoding of SmolLM2-135M: 64 new tokens after a prompt of 64.

The peer is transformers' `generate` on the same weights and in the same precision, with
its cache; on a CPU ours are packed first, which takes its time apart. In float32 both
must give the same tokens. In bfloat16 no two ways of computing do, so there the largest
error of a logit is compared, on the tokens of float32, each step given the right ones
before it: ours goes through the cache token by token and may err 1.5 times as much.

A step of one row reads every weight and computes little, so the ceiling is the rate at
which this machine reads memory. Times are for all the new tokens, prompt included. On
CUDA ours are neither compiled nor captured yet. Where the weights cannot be had, those
of a model of this shape are drawn: they take as long.
"""

import os
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bench import SMALL, report, side_by_side, timed
from fmkit import runtime
from fmkit.assets import AssetError, fetch
from fmkit.generate import generate
from fmkit.models.packed import packed
from fmkit.models.pretrained import llama_parts, load_gguf
from fmkit.models.transformer import Transformer, TransformerConfig

TEXT = Path(__file__).parents[1] / "LICENSE"  # English that does not change
BATCHES, PROMPT, THREADS = (1, 8), 64, 1 if SMALL else 2
NEW, ROUNDS = (4, 1) if SMALL else (64, 3)
ALLOWED = 1.5  # times the peer's largest error
SMOLLM2 = TransformerConfig(
    vocabulary=49_152,
    context=2048,
    width=576,
    layers=4 if SMALL else 30,
    heads=9,
    kv_heads=3,
    hidden=1536,
)


def weights_and_prompts() -> tuple[Transformer, Tensor]:
    """SmolLM2 and English prompts; without its file, a drawn model and drawn tokens."""
    try:
        lm = load_gguf(fetch("smollm2-135m-instruct-q4")["smollm2.gguf"])
    except AssetError as error:
        print(f"weights are drawn, because {error}")
        runtime.seed_weights(0)
        model = Transformer(SMOLLM2).eval()
        with torch.no_grad():  # so large that a token depends on all tokens before it
            for weight in model.blocks.parameters():
                if weight.dim() == 2:
                    weight.mul_(5)
        ids = torch.randint(SMOLLM2.vocabulary, (max(BATCHES) * PROMPT,))
        return model, ids.view(-1, PROMPT)
    ids = lm.tokenizer.encode(TEXT.read_text(encoding="utf-8")).ids
    return lm.model, torch.tensor(ids[: max(BATCHES) * PROMPT]).view(-1, PROMPT)


def llama_weights(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The weights in the pieces, and under the names, of Llama's files."""
    for name, weight in model.state_dict().items():
        parts = llama_parts(name, model.config)
        rows = [shape[0] for shape in parts.values()]
        yield from zip(parts, weight.split(rows), strict=True)


def peer_of(model: Transformer) -> LlamaForCausalLM:
    """transformers' Llama with the same weights; no token ends a row."""
    config = model.config
    peer = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary,
            max_position_embeddings=config.context,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            intermediate_size=config.hidden,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            tie_word_embeddings=config.tied,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    peer.load_state_dict(dict(llama_weights(model)))
    return peer.eval()


def peer_tokens(peer: LlamaForCausalLM, prompts: Tensor) -> list[list[int]]:
    with torch.inference_mode():
        tokens = peer.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            min_new_tokens=NEW,
            max_new_tokens=NEW,
            use_cache=True,
            pad_token_id=0,
        )
    return tokens[:, PROMPT:].tolist()


@torch.inference_mode()
def step_by_step(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """u of every token, the prompt at once and the others one after another."""
    B, T = tokens.shape
    cache = model.cache(padding=[0] * B, room=T)
    parts = tokens.split([PROMPT, *[1] * (T - PROMPT)], dim=1)
    return torch.cat([model(part, cache) for part in parts], dim=1).float()


def memory_rate(device: torch.device) -> float:
    """Most bytes a second that this machine read in a sum over 1 GiB."""
    x = torch.ones(2**28, device=device)
    return 2**30 / min(timed(lambda: x.sum().item())[0] for _ in range(8))


def timed_case(
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    B: int,
    dtype: torch.dtype,
    weight_bytes: int,
    ceiling: float,
) -> dict[str, float]:
    name = f"{str(dtype).removeprefix('torch.')}, batch {B}"
    case = side_by_side(ours, peer, rounds=ROUNDS, label=name)
    for who in ("ours", "peer"):
        seconds = case[who]
        share = weight_bytes * NEW / seconds / ceiling
        print(
            f"    {who} {B * NEW / seconds:7.1f} tokens/s, "
            f"{share:.0%} of {ceiling / 1e9:.1f} GB/s in weights"
        )
    return case


def main() -> None:
    device = runtime.pick_device()
    if device.type == "cpu":
        torch.set_num_threads(THREADS)
    print(f"load before: {os.getloadavg()[0]:.1f}")
    model, prompts = (each.to(device) for each in weights_and_prompts())
    peer = peer_of(model).to(device)

    equal, cases, exact, tokens = True, [], None, None
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    for dtype in kinds.values():
        model, peer = model.to(dtype), peer.to(dtype)
        seconds, decoder = timed(lambda model=model: packed(model))
        print(f"packed for {dtype} in {seconds:.1f} s")
        weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        if dtype == torch.float32:
            for B in BATCHES:
                own_tokens = generate(decoder, prompts[:B].tolist(), new_tokens=NEW)
                same = own_tokens == peer_tokens(peer, prompts[:B])
                print(f"the same {B * NEW} tokens: {same}")
                equal = equal and same
            longer = torch.tensor(own_tokens, device=device)
            tokens = torch.cat([prompts, longer], dim=1)
            with torch.inference_mode():
                exact = model(tokens)
        else:
            with torch.inference_mode():
                theirs = (peer(tokens).logits.float() - exact).abs().max().item()
            own = (step_by_step(decoder, tokens) - exact).abs().max().item()
            print(f"largest error of a logit: ours {own:.3f}, peer {theirs:.3f}")
            equal = equal and own <= ALLOWED * theirs
        ceiling = memory_rate(device)
        for B in BATCHES:
            rows = prompts[:B]
            case = timed_case(
                lambda: generate(decoder, rows.tolist(), new_tokens=NEW),  # noqa: B023
                lambda: peer_tokens(peer, rows),  # noqa: B023 - called at once
                B=B,
                dtype=dtype,
                weight_bytes=weight_bytes,
                ceiling=ceiling,
            )
            cases.append(case)
    print(f"load after: {os.getloadavg()[0]:.1f}")
    worst = min(cases, key=lambda case: case["ratio"])
    for (dtype, B), case in zip(product(kinds, BATCHES), cases, strict=True):
        worst[f"{dtype}_{B}_tokens_per_s"] = B * NEW / case["ours"]
    report("decode", worst, equal=equal, device=device)


if __name__ == "__main__":
    main()
