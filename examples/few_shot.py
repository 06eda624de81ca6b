"""Score a language model on a task of your own, with examples in the prompt.

python examples/few_shot.py MODEL PAIRS

MODEL is a folder in which transformers has saved a Llama; PAIRS is a file of lines
"text<tab>answer". The first 20 pairs are asked, 4 of the others are examples.
"""

import sys
from pathlib import Path

import torch

from fmkit.evaluate import mean_interval
from fmkit.models.pretrained import load_llama
from fmkit.prompt import Format, choice_accuracy, draw_examples, score_answers
from fmkit.tasks.questions import Task, candidates

model_folder, pairs_file = sys.argv[1:]
lines = Path(pairs_file).read_text(encoding="utf-8").splitlines()
task = Task([line.split("\t") for line in lines])
form = Format("Review: {x}\nVerdict: {y}")
rng = torch.Generator().manual_seed(0)

pool = task.items[20:]
shown = [pool[i] for i in draw_examples(pool, 4, generator=rng)]
prompts = [form.prompt(shown, x) for x, _ in task.items[:20]]
choices = [candidates(task, i, count=2, generator=rng) for i in range(20)]
answers = [[form.answer(y) for y in pair] for pair in choices]

scored = score_answers(load_llama(model_folder), prompts, answers)
correct = choice_accuracy(scored.log_p / scored.bytes)  # the first answer is correct
mean, low, high = mean_interval(correct.tolist(), generator=rng)
print(f"accuracy {mean:.2f} ({low:.2f} to {high:.2f})")
