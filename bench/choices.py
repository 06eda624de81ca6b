"""Choosing among 4 answers after 8 examples, for 100 queries, with SmolLM2-135M.

What is timed is log p of every answer to every query, tokens included. Ours computes
once what all prompts begin with, and each prompt once for its four answers. The peer is
what one writes by hand: every prompt with every answer as a whole text through
transformers' Llama on the same weights, as many rows at a time, sorted by length and
padded on the right. Its log p must be ours to 1e-3 nats.

Two cases: the same examples before every query, and others for each. The second is the
harder one, as little is shared: there a prompt is read once in place of four times.
"""

import argparse
import os

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from bench import report, side_by_side, timed
from bench.decode import peer_of
from fmkit import runtime
from fmkit.assets import fetch
from fmkit.models.language_model import LanguageModel
from fmkit.models.pretrained import load_gguf
from fmkit.prompt import BARE, draw_examples, score_answers
from fmkit.tasks.questions import candidates, load_task

TASK, EXAMPLES, ANSWERS, QUERIES, BATCH = "capitals", 8, 4, 100, 16
ROUNDS, THREADS, TOLERANCE = 3, 2, 1e-3


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=THREADS)
    options = parser.parse_args()
    device = runtime.pick_device()
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    print(f"load before: {os.getloadavg()[0]:.1f}")
    lm = load_gguf(fetch("smollm2-135m-instruct-q4")["smollm2.gguf"]).to(device)
    peer = peer_of(lm.model).to(device)
    seconds, fast = timed(lm.packed)
    print(f"packed in {seconds:.1f} s")
    equal, cases = True, []
    for name in ("the same examples", "others each time"):
        shared = name == "the same examples"
        prompts, answers = questions(queries=options.queries, shared=shared)

        def ours(prompts=prompts, answers=answers) -> Tensor:
            return score_answers(fast, prompts, answers, bar="").log_p

        def theirs(prompts=prompts, answers=answers) -> Tensor:
            return peer_log_p(peer, lm, prompts, answers)

        gap = (ours() - theirs()).abs().max().item()
        accuracy = (ours().argmax(dim=1) == 0).double().mean().item()
        print(f"log p differs by {gap:.1e} nats at most; {accuracy:.0%} correct")
        equal = equal and gap <= TOLERANCE
        cases.append(side_by_side(ours, theirs, rounds=options.rounds, label=name))
    print(f"load after: {os.getloadavg()[0]:.1f}")
    report("choices", min(cases, key=lambda case: case["ratio"]), equal=equal)


if __name__ == "__main__":
    main()
