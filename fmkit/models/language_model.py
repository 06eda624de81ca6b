"""Keep a language model together with its tokenizer, its start and its end symbols."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from fmkit._check import Refused, one_line, require
from fmkit.data.tokens import check_ids, padded
from fmkit.models._chat import rendered
from fmkit.models.packed import packed


@dataclass(frozen=True)
class LanguageModel:
    """A model of text, the tokenizer that it was trained with, its start and its ends.

    Every loader of the package returns one. Raises ``ValueError`` if `start` or one of
    `ends` is no id of the tokenizer. Some models have no start symbol: the first token
    of a text is the first that they see. Models whose tokens are not text have no
    tokenizer either.
    """

    model: nn.Module
    tokenizer: Tokenizer | None
    start: int | None  # the id of x_0, written ⊥; None if the model has none
    ends: tuple[int, ...] = ()  # the ids after which a text or a turn is over
    template: str | None = None  # of a chat, in Jinja; None if the files have none

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            require(self.start is None, "start", "be None without tokens", self.start)
            require(not self.ends, "ends", "be none without tokens", self.ends)
            return
        rule = "be the id of a token"
        if self.start is not None:
            require(self._is_token(self.start), "start", rule, self.start)
        for end in self.ends:
            require(self._is_token(end), "an end", rule, end)

    def _is_token(self, i: int) -> bool:
        return i >= 0 and self.tokenizer.id_to_token(i) is not None

    def to(self, device: torch.device | str) -> "LanguageModel":
        """Move the model to `device`, in place, and return the same again."""
        return replace(self, model=self.model.to(device))

    def packed(self) -> "LanguageModel":
        """Return the same with a model that a CPU decodes faster.

        See :func:`fmkit.models.packed.packed`.
        """
        return replace(self, model=packed(self.model))

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` after the start symbol, if the model has one.

        If the tokenizer itself adds special tokens (BERT's [CLS] and [SEP]), they are
        kept.
        """
        # As a batch of one, because only batches can leave the offsets uncounted
        [encoding] = self.tokenizer.encode_batch_fast([text])
        return self.begun(encoding.ids)

    def chat(self, text: str, examples: Sequence[tuple[str, str]] = ()) -> str:
        """Return the prompt in which a user says `text` and the model is to answer.

        `examples` are earlier turns of the chat: what the user said, what the model
        answered.

        It is the chat template of the model's own files, with the system message that
        the template adds, and with every special token that it wants. So encode the
        prompt without a start symbol: ``replace(lm, start=None).encode(prompt)``.
        Raises ``ValueError`` if the files have no template, and if it cannot be
        rendered. Templates run in Jinja's sandbox, because they come from files.
        """
        earlier = [
            {"role": role, "content": said}
            for pair in examples
            for role, said in zip(("user", "assistant"), pair, strict=True)
        ]
        return self.chat_of([*earlier, {"role": "user", "content": text}])

    def chat_of(
        self, messages: Sequence[Mapping[str, str]], *, answer: bool = True
    ) -> str:
        """Return the text of a chat by its messages, each with a role and a content.

        With `answer` it ends where the model is to answer. See
        :meth:`~fmkit.models.language_model.LanguageModel.chat`.
        """
        rule = "have a chat template; this model was not tuned on chats, or lacks it"
        require(bool(self.template), "lm.template", rule, self.template)

        def piece(id: int | None) -> str:
            known = id is not None and self.tokenizer is not None
            return (self.tokenizer.id_to_token(id) if known else None) or ""

        try:
            return rendered(
                self.template,
                messages,
                add_generation_prompt=answer,
                bos_token=piece(self.start),
                eos_token=piece(next(iter(self.ends), None)),
            )
        except Exception as error:  # whatever the code in a template may raise
            about = f"{type(error).__name__}: {one_line(error)}"
            raise Refused(f"The chat template cannot be rendered ({about}).") from error

    def begun(self, ids: list[int]) -> list[int]:
        """Return `ids` after the start symbol, once: none is added before another."""
        if self.start is None or ids[:1] == [self.start]:
            return ids
        return [self.start, *ids]

    def ids(self, texts: Sequence[str], *, limit: int) -> Int[Tensor, "n T"]:
        """Return the ids of texts as rows, padded at the end.

        See :func:`fmkit.data.tokens.padded`. Each text is cut after `limit`
        tokens, the start symbol counted. Raises ``ValueError`` if a token has no vector
        in the model.
        """
        rows = padded([self.encode(text) for text in texts], limit=limit)
        check_ids(rows.clamp(min=0), vocabulary=self.model.config.vocabulary)
        return rows
