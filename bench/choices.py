"""Choosing among 4 answers after 8 examples, for 32 queries, with SmolLM2-135M.

What is timed is log p of every answer to every query, tokens included. Ours computes
once what all prompts begin with, and each prompt once for its four answers. The peer is
what one writes by hand: every prompt with every answer as a whole text through
transformers' Llama on the same weights, as many rows at a time, sorted by length and
padded on the right. Its log p must be ours to 1e-3 nats.

Two cases: the same examples before every query, and others for each. The second is the
harder one, as little is shared: there a prompt is read once in place of four times.
"""

import os
from functools import partial

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from bench import SMALL, compared, report, timed
from bench.decode import peer_of
from fmkit import runtime
from fmkit.assets import fetch
from fmkit.models.language_model import LanguageModel
from fmkit.models.pretrained import load_gguf
from fmkit.prompt import BARE, draw_examples, score_answers
from fmkit.tasks.questions import candidates, load_task

TASK, EXAMPLES, ANSWERS, BATCH = "capitals", 8, 4, 16
QUERIES, ROUNDS = (4, 1) if SMALL else (32, 2)
THREADS, TOLERANCE = 2, 1e-3


def questions(*, queries: int, shared: bool) -> tuple[list[str], list[list[str]]]:
    """Prompts and the answers to each; no example is a query."""
    task = load_task(TASK)
    generator = torch.Generator().manual_seed(0)
    pool = [*task.items[queries:]]
    prompts, answers = [], []
    chosen = draw_examples(pool, EXAMPLES, generator=generator)
    for i, (x, _) in enumerate(task.items[:queries]):
        if not shared:
            chosen = draw_examples(pool, EXAMPLES, generator=generator)
        prompts.append(BARE.prompt([pool[j] for j in chosen], x))
        choices = candidates(task, i, count=ANSWERS, generator=generator)
        answers.append([BARE.answer(y) for y in choices])
    return prompts, answers


@torch.inference_mode()
def peer_log_p(
    peer: LlamaForCausalLM,
    lm: LanguageModel,
    prompts: list[str],
    answers: list[list[str]],
) -> Tensor:
    """log p of every answer, each of prompt and answer as one row."""
    pairs = zip(prompts, answers, strict=True)
    rows = [(prompt, prompt + y) for prompt, choices in pairs for y in choices]
    heads, wholes = (
        lm.tokenizer.encode_batch([r[part] for r in rows]) for part in (0, 1)
    )
    first = [1 + len(head.ids) for head in heads]
    ids = [[lm.start, *whole.ids] for whole in wholes]
    log_p = torch.zeros(len(rows), dtype=torch.float64)
    order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
    for begin in range(0, len(order), BATCH):
        batch = order[begin : begin + BATCH]
        longest = max(len(ids[n]) for n in batch)
        padded = [ids[n] + [0] * (longest - len(ids[n])) for n in batch]
        real = [[1] * len(ids[n]) + [0] * (longest - len(ids[n])) for n in batch]
        tokens = torch.tensor(padded, device=peer.device)
        mask = torch.tensor(real, device=peer.device)
        u = peer(tokens, attention_mask=mask, use_cache=False).logits
        for n, row, u_row in zip(batch, tokens, u, strict=True):
            of_answer = slice(first[n] - 1, len(ids[n]) - 1)
            each = u_row[of_answer].float().log_softmax(dim=-1)
            answer = row[first[n] : len(ids[n])]
            log_p[n] = each.gather(1, answer[:, None]).sum().item()
    return log_p.view(len(prompts), -1)


def main() -> None:
    device = runtime.pick_device()
    if device.type == "cpu":
        torch.set_num_threads(THREADS)
    print(f"load before: {os.getloadavg()[0]:.1f}")
    lm = load_gguf(fetch("smollm2-135m-instruct-q4")["smollm2.gguf"]).to(device)
    peer = peer_of(lm.model).to(device)
    seconds, fast = timed(lm.packed)
    print(f"packed in {seconds:.1f} s")
    equal, cases = True, []
    for name in ("the same examples", "others each time"):
        shared = name == "the same examples"
        prompts, answers = questions(queries=QUERIES, shared=shared)
        score_answers(fast, prompts[:4], answers[:4], bar="")  # warm
        pairs = []
        for _ in range(ROUNDS):  # a peer's takes long: its timed results are compared
            own, scored = timed(partial(score_answers, fast, prompts, answers, bar=""))
            by_hand, theirs = timed(partial(peer_log_p, peer, lm, prompts, answers))
            pairs.append((own, by_hand))
        gap = (scored.log_p - theirs).abs().max().item()
        accuracy = (scored.log_p.argmax(dim=1) == 0).double().mean().item()
        print(f"log p differs by {gap:.1e} nats at most; {accuracy:.0%} correct")
        equal = equal and gap <= TOLERANCE
        cases.append(compared(pairs, label=name))
    print(f"load after: {os.getloadavg()[0]:.1f}")
    worst = min(cases, key=lambda case: case["ratio"])
    report("choices", worst, equal=equal, device=device)


if __name__ == "__main__":
    main()
