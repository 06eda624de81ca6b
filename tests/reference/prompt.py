"""Scoring as loops: every prompt with every answer through the model, each by itself.

No cache, no batch; probabilities are Python floats.
"""

import math

import torch


def score(model, tokenizer, prompt, answer, start):
    """log p of an answer in nats, its tokens, and whether greedy decoding says it."""
    head = [start, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    whole = [start, *tokenizer.encode(prompt + answer, add_special_tokens=False).ids]
    with torch.no_grad():
        logits = model(torch.tensor([whole[:-1]]))[0].tolist()
    log_p, greedy = 0.0, True
    for t in range(len(head), len(whole)):
        u = logits[t - 1]  # of token t, made from those before it
        largest = max(u)
        log_sum = largest + math.log(sum(math.exp(score - largest) for score in u))
        log_p += u[whole[t]] - log_sum
        greedy = greedy and u[whole[t]] == largest
    return log_p, len(whole) - len(head), greedy
