"""Compare our log-likelihoods with those of lm-evaluation-harness, on the same weights.

``python -m tools.lm_eval_record results/zero_shot/harness.json`` writes the record. It
needs the extra ``harness`` and is not part of ``make bench``, because lm-eval brings
some thirty packages (pyarrow, datasets, pandas, nltk and more) that no benchmark uses.
Both sides get the weights of SmolLM2 (the harness in the Llama of transformers), the
same tokenizer, and prompts and answers as text; each tokenizes and scores them by
itself. The task is capitals with 4 examples in the bare format and 4 answers for each
query.
"""

import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast

from bench.decode import peer_of
from fmkit import runtime
from fmkit.assets import fetch
from fmkit.models.pretrained import load_gguf
from fmkit.prompt import BARE, draw_examples, score_answers
from fmkit.runs.record import new_record, write_record
from fmkit.tasks.questions import candidates, load_task

TASK, EXAMPLES, ANSWERS, QUERIES, SEED = "capitals", 4, 4, 60, 0
TOLERANCE = 1e-3  # nats


def of_harness(lm, prompts, answers) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p of every answer, and whether it is greedy, by the harness."""
    bottom = lm.tokenizer.id_to_token(lm.start)
    as_theirs = PreTrainedTokenizerFast(
        tokenizer_object=lm.tokenizer,
        bos_token=bottom,
        eos_token=bottom,
        pad_token=bottom,
    )
    harness = HFLM(
        pretrained=peer_of(lm.model), tokenizer=as_theirs, batch_size=8, max_length=2048
    )
    requests = [
        Instance("loglikelihood", {}, (bottom + prompt, answer), i)
        for i, (prompt, choices) in enumerate(zip(prompts, answers, strict=True))
        for answer in choices
    ]
    results = harness.loglikelihood(requests)
    log_p = torch.tensor([value for value, _ in results], dtype=torch.float64)
    greedy = torch.tensor([is_greedy for _, is_greedy in results])
    return log_p.view(len(prompts), -1), greedy.view(len(prompts), -1)


def main() -> None:
    """Write the record to the path that the command names."""
    begin = time.perf_counter()
    parameters = {"task": TASK, "k": EXAMPLES, "answers": ANSWERS, "queries": QUERIES}
    parameters |= {"seed": SEED, "device": "cpu"}
    device = runtime.device_name(runtime.pick_device("cpu"))
    record = new_record("zero_shot", parameters, device=device)
    record["versions"] |= {name: version(name) for name in ("lm_eval", "transformers")}
    lm = load_gguf(fetch("smollm2-135m-instruct-q4")["smollm2.gguf"])
    task, rng = load_task(TASK), torch.Generator().manual_seed(SEED)
    pool = task.items[QUERIES:]
    chosen = [pool[i] for i in draw_examples(pool, EXAMPLES, generator=rng)]
    prompts = [BARE.prompt(chosen, x) for x, _ in task.items[:QUERIES]]
    drawn = [candidates(task, i, count=ANSWERS, generator=rng) for i in range(QUERIES)]
    answers = [[BARE.answer(y) for y in choices] for choices in drawn]
    ours = score_answers(lm, prompts, answers)
    log_p, greedy = of_harness(lm, prompts, answers)
    accuracy = [
        (x.argmax(dim=1) == 0).double().mean().item() for x in (ours.log_p, log_p)
    ]
    record["metrics"] = {
        "harness/requests/4/test": float(log_p.numel()),
        "harness/largest-difference/4/test": (ours.log_p - log_p).abs().max().item(),
        "harness/greedy-differs/4/test": (ours.greedy != greedy).double().sum().item(),
        "harness/accuracy/4/test": accuracy[1],
        "fmkit/accuracy/4/test": accuracy[0],
    }
    gap = record["metrics"]["harness/largest-difference/4/test"]
    record["findings"] = {
        "Our log-likelihoods are those of the harness, up to": {
            "values": [gap],
            "unit": "nats",
            "at_least": None,
            "at_most": TOLERANCE,
            "holds": gap <= TOLERANCE,
        }
    }
    record |= {
        "status": "finished",
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_memory_mb": runtime.peak_memory_mb(torch.device("cpu")),
    }
    print(record["metrics"])
    write_record(Path(sys.argv[1]), record)


if __name__ == "__main__":
    main()
