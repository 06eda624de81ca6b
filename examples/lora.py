"""Finetune a language model on labelled texts, with low-rank updates.

python examples/lora.py MODEL TEXTS STEPS

MODEL is a folder in which transformers has saved a Llama; TEXTS is a file of lines
"label<tab>text". Every fifth line is for the test.
"""

import sys
from pathlib import Path

import torch

from fmkit.adapt import Predictor, finetuning, frozen_outputs, random_head
from fmkit.evaluate import accuracy
from fmkit.lora import save_low_rank, with_low_rank
from fmkit.models.pooling import Pooled, last_token
from fmkit.models.pretrained import load_llama

model_folder, texts_file, steps = sys.argv[1:]
lines = Path(texts_file).read_text(encoding="utf-8").splitlines()
names, texts = zip(*(line.split("\t", 1) for line in lines), strict=True)
classes = sorted({*names})
labels = torch.tensor([classes.index(name) for name in names])
lm = load_llama(model_folder)
tokens = lm.ids(texts, limit=64)
test = torch.arange(len(texts)) % 5 == 0
rng = torch.Generator().manual_seed(0)

phi = Pooled(with_low_rank(lm.model, ["qkv", "out"], rank=8, alpha=16.0), last_token)
model = Predictor(phi, random_head(phi.m, len(classes), generator=rng))
options = {"steps": int(steps), "batch_size": 16, "learning_rate": 1e-3}
for record in finetuning(model, tokens[~test], labels[~test], **options, generator=rng):
    print(f"step {record.step}: {record.loss:.3f} nats")
print(f"accuracy {accuracy(frozen_outputs(model, tokens[test]), labels[test]):.3f}")
save_low_rank("lora", model.phi)
torch.save(model.head.state_dict(), "lora/head.pt")
