"""Run the tasks of lm-evaluation-harness on any language model of the package.

``python -m fmkit.harness`` is the harness's own command ``lm-eval`` with one more
model, called ``fmkit``. In Python, ``simple_evaluate`` of the harness takes a
``HarnessModel``. It needs the extra ``harness``. Source: Gao et al. 2021, version 0.4.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from fmkit import runtime
from fmkit._check import Refused, require
from fmkit.generate import StopStrings, generate, sampler
from fmkit.models.language_model import LanguageModel
from fmkit.models.pretrained import load_pretrained
from fmkit.progress import progress
from fmkit.prompt import score_tokens

Pair = tuple[list[int], list[int]]  # tokens that are read, and those that are scored
DTYPES = ("float32", "bfloat16", "float16")
DEVICE = "cuda:0"  # what the command passes if it names none
NEW_TOKENS = 256  # of a text whose task has no limit, as the harness's other models
OPTIONS = ("do_sample", "temperature", "top_p", "num_beams")
HERE = "\ue000"  # where a text goes on: a character for private use


@register_model("fmkit")
class HarnessModel(LM):
    """A language model of the package, as the harness asks for it.

    `pretrained` is a name for :func:`fmkit.models.pretrained.load_pretrained`, or a
    model that is loaded already. The start symbol of the model precedes every text,
    once. Without `add_bos_token` it precedes only a text that has no context.

    The harness's own model, ``hf``, leaves the start symbol to the tokenizer; its
    ``add_bos_token`` overrides that. If both add it, or neither does, they agree on
    log-likelihoods and generated texts. They agree on rolling log-likelihoods if ``hf``
    does not add it: otherwise it also scores the start symbol, after another one.

    A text that exceeds the context is cut on the left, and a line in the log counts
    such texts. `batch_size` is how many texts are generated at a time; as many answers
    are scored at a time as memory allows. With ``--apply_chat_template`` contexts are
    chats, by the template of the model's files. Raises ``ValueError`` for a wrong or an
    unknown argument, if the model has neither a start nor an end symbol, and as
    ``load_pretrained`` does.
    """

    def __init__(
        self,
        pretrained: str | LanguageModel = "",
        *,
        add_bos_token: bool = True,
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int | str = 1,
        **others: object,
    ) -> None:
        super().__init__()
        rule = "be pretrained, add_bos_token, dtype, device or batch_size"
        require(not others, "an argument of fmkit", rule, ", ".join(others))
        require(bool(pretrained), "pretrained", "name a model", pretrained)
        known = str(batch_size).isdecimal() and int(batch_size) >= 1
        require(known, "batch_size", "be a whole number above 0", batch_size)
        require(dtype in DTYPES, "dtype", f"be one of {', '.join(DTYPES)}", dtype)
        self._device = runtime.pick_device("auto" if device == DEVICE else device)
        lm = pretrained
        if not isinstance(lm, LanguageModel):
            lm = load_pretrained(str(lm), dtype=getattr(torch, dtype))
        lm = lm.to(self._device)
        first = [*lm.ends[:1]] if lm.start is None else [lm.start]
        rule = "have a start or an end symbol, which precedes a text without a context"
        require(bool(first), "pretrained", rule, "neither")
        self._lm = lm if add_bos_token else replace(lm, start=None)
        self._after_nothing = replace(lm, start=first[0])
        self._batch_size = int(batch_size)

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of requests, beside that of the template."""
        return type(self).__name__

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template of chats, of which a model has one, for the records."""
        one = isinstance(chat_template, bool)
        require(one, "apply_chat_template", "be without a name", chat_template)
        return self._lm.template

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the text of a chat, up to the next answer or to the end of the last.

        In the second case the model continues the last message. Raises ``ValueError``
        as :meth:`fmkit.models.language_model.LanguageModel.chat` does.
        """
        if add_generation_prompt:
            return self._lm.chat_of(chat_history)
        *earlier, last = chat_history
        last = {**last, "content": last["content"] + HERE}
        text = self._lm.chat_of([*earlier, last], answer=False)
        rule = "keep the beginning of an answer"
        require(HERE in text, "the chat template", rule, last["content"][:-1])
        return text.rpartition(HERE)[0]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return log p of each continuation after its context, and if it is greedy."""
        return self._scores([self._pair(*request.args) for request in requests])

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return log p of each text, each token once, in windows of the context."""
        windows: list[Pair] = []
        owners = []
        for i, (text,) in enumerate(request.args for request in requests):
            first, *tokens = self._after_nothing.encode(text)
            length = self._lm.model.config.context
            for window in get_rolling_token_windows(tokens, first, length, 1):
                windows.append(make_disjoint_window(window))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, (log_p, _) in zip(owners, self._scores(windows), strict=True):
            totals[i] += log_p
        return totals

    @runtime.exact()
    def generate_until(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """Return what follows each context, up to an end symbol or a stop string.

        A task may set ``until``, ``max_gen_toks``, ``do_sample``, ``temperature`` and
        ``top_p``. Draws come from torch's global generator, which the harness seeds.
        Raises ``ValueError`` for any other option, such as several beams.
        """
        contexts = [request.args[0] for request in requests]
        given = [request.args[1] for request in requests]
        alike: dict[str, list[int]] = {}
        for i in sorted(range(len(contexts)), key=lambda i: len(contexts[i])):
            alike.setdefault(repr(given[i]), []).append(i)
        batches = [
            rows[first : first + self._batch_size]
            for rows in alike.values()
            for first in range(0, len(rows), self._batch_size)
        ]
        texts = [""] * len(contexts)
        for rows in progress(batches, bar="generating"):
            some = self._generate([contexts[i] for i in rows], given[rows[0]])
            for i, text in zip(rows, some, strict=True):
                texts[i] = text
        return texts

    def _generate(self, contexts: Sequence[str], given: dict) -> list[str]:
        options = normalize_gen_kwargs(given, NEW_TOKENS)
        until = [string for string in options.pop("until") if string]
        new_tokens = options.pop("max_gen_toks")
        unknown = [name for name in options if name not in OPTIONS]
        rule = f"be until, max_gen_toks, {', '.join(OPTIONS)}"
        require(not unknown, "generation_kwargs", rule, unknown)
        beams = options.get("num_beams", 1)
        require(beams == 1, "num_beams", "be 1", beams)
        stop = StopStrings(self._lm.tokenizer, until)
        how = {"eos": self._lm.ends, "stop": stop}
        if options["do_sample"]:
            how["choose"] = sampler(
                generator=runtime.global_generator(self._device),
                temperature=options.get("temperature", 1.0),
                top_p=options.get("top_p", 1.0),
            )
        context = self._lm.model.config.context
        rule = f"be from 1 to one less than the context ({context})"
        require(0 < new_tokens < context, "max_gen_toks", rule, new_tokens)
        heads = [self._encode(text) for text in contexts]
        heads = self._cut(heads, context - new_tokens)
        rows = generate(self._lm.model, heads, new_tokens=new_tokens, **how)
        texts = map(self._lm.tokenizer.decode, rows)
        # Its rule, too, where strings overlap: in the order of the task
        return [postprocess_generated_text(text, until, None) for text in texts]

    def _encode(self, text: str) -> list[int]:
        """Return the tokens of a context; an empty one is a start or end symbol."""
        return (self._lm if text else self._after_nothing).encode(text)

    def _pair(self, context: str, continuation: str) -> Pair:
        """Encode both as one text, and cut it after as many tokens as the context has.

        White space at the end of a context belongs to the continuation, and a token may
        hold the end of one and the beginning of the other.
        """
        head = context.rstrip()
        lm = self._lm if head else self._after_nothing
        read, whole = lm.encode(head), lm.encode(context + continuation)
        scored = whole[len(read) :]
        rule = "have a token after its context"
        require(bool(scored), "a continuation", rule, continuation)
        return read, scored

    def _scores(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Return log p of the scored tokens of each pair, and if all are greedy."""
        context = self._lm.model.config.context
        longest = max((len(scored) for _, scored in pairs), default=0)
        rule = f"have at most as many tokens as the context ({context})"
        require(longest <= context, "a continuation", rule, longest)
        kept = self._cut([read + scored for read, scored in pairs], context + 1)
        answers: dict[tuple[int, ...], list[int]] = {}  # of each prompt
        for i, (tokens, (_, scored)) in enumerate(zip(kept, pairs, strict=True)):
            answers.setdefault((*tokens[: -len(scored)],), []).append(i)
        results: dict[int, tuple[float, bool]] = {}
        if pairs:
            heads = [[*head] for head in answers]
            tails = [[pairs[i][1] for i in rows] for rows in answers.values()]
            log_p, greedy = score_tokens(self._lm.model, heads, tails)
            for rows, *table in zip(answers.values(), log_p, greedy, strict=True):
                for i, *result in zip(rows, *(t.tolist() for t in table), strict=False):
                    results[i] = tuple(result)
        return [results[i] for i in range(len(pairs))]

    def _cut(self, texts: list[list[int]], length: int) -> list[list[int]]:
        """Return the last tokens of each text, at most `length`."""
        cut = sum(len(text) > length for text in texts)
        if cut:
            log = logging.getLogger(__name__)
            log.warning("%d of %d texts are cut to %d tokens", cut, len(texts), length)
        return [text[-length:] for text in texts]


def main() -> None:
    """Run the command of the harness; end with one sentence if something is refused."""
    try:
        cli_evaluate()
    except Refused as refused:
        sys.exit(f"fmkit: {refused}")


if __name__ == "__main__":
    main()
