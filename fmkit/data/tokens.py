"""Turn text into the token ids that a language model of 14.3 reads, and cut sequences.

A tokenizer numbers the members of its vocabulary from 0 to V - 1. Every tokenizer here
is a ``tokenizers.Tokenizer`` in which id 0 is the start symbol x_0, written ⊥. It
marks the beginning of a document, and no text encodes to it.
Axes: T tokens, B batch, n tokens of a whole corpus.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path

import torch
from jaxtyping import Bool, Int, Int64, Integer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from fmkit import runtime
from fmkit._check import Refused, one_line, require
from fmkit._reading import refuse_pointer
from fmkit._tensors import require_integers

START = 0  # the id of x_0 in every tokenizer that is made here
START_PIECE = "⊥"  # how x_0 is shown
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # a space, as the pieces of SentencePiece write it
UNKNOWN = "\ue000"  # a character for private use, which no vocabulary has
PADDING = -1  # after the end of shorter texts: no token of any vocabulary


def characters(texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer whose tokens are the characters of `texts`.

    Id i + 1 is character i of their alphabet in ascending order. Encoding any other
    character is an error of the library, because it has no id.
    """
    alphabet = sorted(set().union(*texts))
    # Two characters long, because otherwise a text could hold it
    vocabulary = {2 * START_PIECE: START} | {c: i for i, c in enumerate(alphabet, 1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([2 * START_PIECE])
    return _spelled(tokenizer)


def utf8_bytes() -> Tokenizer:
    """Return a tokenizer whose tokens are the bytes of UTF-8: id b + 1 is byte b."""
    vocabulary = {START_PIECE: START} | {c: i for i, c in enumerate(_byte_names(), 1)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([START_PIECE])
    return _spelled(tokenizer)


def byte_pairs(texts: Iterable[str], *, vocabulary: int) -> Tokenizer:
    """Learn byte pairs: merge the most frequent pair in `texts` until V is reached.

    V is `vocabulary`. It stays smaller if every word of `texts` becomes one token
    before. Ids 1 to 256 are the bytes, in the order of the names that the library gives
    them, and the merges follow. Raises ``ValueError`` if `vocabulary` is below 257: ⊥
    and the bytes. Source: Sennrich et al. 2016; on bytes, and never across words,
    Radford et al. 2019.

    In the notes: footnote 6.
    """
    require(vocabulary >= 257, "vocabulary", "be at least 257", vocabulary)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[START_PIECE],
        initial_alphabet=sorted(_byte_names()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _spelled(tokenizer)


def read_tokenizer(text: str) -> Tokenizer:
    """Return the tokenizer that one of this module's wrote with its ``to_str``.

    A text that holds ⊥ is spelled in other tokens. The library does not keep this
    setting in its text, so it is set here.
    """
    return _spelled(Tokenizer.from_str(text))


def open_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json`` that neither cuts nor pads, whatever it says.

    Raises ``ValueError`` if it cannot be read, and if it has no token for characters
    that it does not know, with which a text that has one could not be encoded.
    """
    refuse_pointer(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise Refused(f"{path} cannot be read ({one_line(error)}).") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        encode(tokenizer, UNKNOWN)
    except Exception as error:
        rule = f"have a token for unknown characters ({one_line(error)})"
        raise Refused(f"{path} must {rule}.") from error
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of `text`, without a start symbol."""
    # As a batch of one, because only batches can leave the offsets uncounted
    [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return encoding.ids


def pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """Return the text of each id by itself; bytes that are no character become �.

    A piece keeps the space that it begins with. The decoders of SentencePiece leave it
    out where a text begins, so it is put back.
    """

    def piece(i: int) -> str:
        text = tokenizer.decode([i], skip_special_tokens=False)
        if (tokenizer.id_to_token(i) or "").startswith(SPACE):
            twice = tokenizer.decode([i, i], skip_special_tokens=False)
            return twice[len(text) :]  # only the second one has its space for certain
        return text

    return [piece(i) for i in ids]


def spaced(tokenizer: Tokenizer, text: str) -> str:
    """Return `text` so that its tokens by themselves are those after a space.

    It begins with one space, unless the tokenizer itself puts one before each text, as
    SentencePiece does.
    """
    alone = "".join(pieces(tokenizer, encode(tokenizer, text)))
    return text if alone.startswith(" ") else f" {text}"


def _spelled(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True  # no text encodes to a special token
    return tokenizer


def _byte_names() -> list[str]:
    """Return the character by which byte-level tokenizers name each byte, 0 to 255.

    A byte that prints in Latin-1 names itself. The others are named, in order, by the
    characters from 256 on (Radford et al. 2019).
    """
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b if b in printed else next(others)) for b in range(256)]


def padded(texts: Sequence[Sequence[int]], *, limit: int) -> Int[Tensor, "n T"]:
    """Return the ids of texts as rows, each cut after `limit` tokens.

    ``PADDING`` follows the last token of the shorter ones. Raises ``ValueError`` if
    there is no text, a text is empty, or an id is below 0.
    """
    require(len(texts) > 0, "texts", "be at least 1", len(texts))
    require(limit >= 1, "limit", "be at least 1", limit)
    for i, ids in enumerate(texts):
        require(len(ids) > 0, f"texts[{i}]", "have at least one token", ids)
        require(min(ids) >= 0, "an id", "be at least 0", min(ids))
    rows = [torch.tensor(ids[:limit], dtype=torch.int64) for ids in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)


def pack(documents: Iterable[Sequence[int]], *, start: int) -> Int64[Tensor, " n"]:
    """Join the ids of all documents, with `start` before each: footnote 5 of 14.3.

    Every training example is a run of this sequence, a part of one document or of
    several. Raises ``ValueError`` if there is no document or an id is below 0.

    In the notes: footnote 5, start symbol.
    """
    parts = [torch.tensor([start, *ids], dtype=torch.int64) for ids in documents]
    require(len(parts) > 0, "documents", "be at least 1", 0)
    sequence = torch.cat(parts)
    least = sequence.min().item()
    require(least >= 0, "an id", "be at least 0", least)
    return sequence


def check_ids(ids: Integer[Tensor, "*shape"], *, vocabulary: int) -> None:
    """Raise ``ValueError`` if an id is no integer from 0 to V - 1, V the `vocabulary`.

    Call it where ids enter, not in a step of training: it waits for their device.
    """
    require_integers("ids", ids)
    if ids.numel():
        least, largest = (end.item() for end in ids.aminmax())
        rule = f"be from 0 to V - 1 ({vocabulary - 1})"
        require(least >= 0, "an id", rule, least)
        require(largest < vocabulary, "an id", rule, largest)


def windows(
    sequence: Integer[Tensor, " n"],
    *,
    context: int,
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[Integer[Tensor, "B T_and_1"]]:
    """Yield batches of runs of T + 1 tokens, T the `context`, without end.

    The first token of each run is drawn uniformly from all places that leave room for
    the others. The first T tokens of a row are the model's input, the last T its
    targets. Rows have the type of `sequence`: a long one may have 16 bits a token.
    Raises ``ValueError`` if `sequence` is not longer than the context.

    In the notes: footnote 5.
    """
    _check_context(sequence, context)
    require(batch_size >= 1, "batch_size", "be at least 1", batch_size)
    offsets = torch.arange(context + 1, device=sequence.device)
    drawn_on, places = generator.device, len(sequence) - context

    def batch() -> Tensor:
        first = torch.randint(
            places, (batch_size, 1), generator=generator, device=drawn_on
        )
        return sequence[runtime.sent(first, sequence.device) + offsets]

    return (batch() for _ in repeat(None))


def consecutive(
    sequence: Int64[Tensor, " n"], *, context: int, batch_size: int
) -> list[Int64[Tensor, "_ _"]]:
    """Cut `sequence` for evaluation: each token except the first is predicted once.

    Windows of T + 1 tokens, T the `context`, follow each other; each begins with the
    last token of the window before it. The tokens that remain at the end form a shorter
    window in a batch of its own, so no window is padded. A token is predicted from 1 to
    T others, so losses are a little above those of a sliding window. Raises
    ``ValueError`` if `sequence` is not longer than the context.
    """
    _check_context(sequence, context)
    require(batch_size >= 1, "batch_size", "be at least 1", batch_size)
    whole = sequence.unfold(0, context + 1, context)
    rest = sequence[len(whole) * context :]  # its first token was predicted before
    return [*whole.split(batch_size), *([rest[None]] if len(rest) > 1 else [])]


def crosses_documents(
    windows: Int[Tensor, "B T_and_1"], *, start: int
) -> Bool[Tensor, " B"]:
    """Tell which windows hold a `start` after their first token: two documents."""
    return (windows[:, 1:] == start).any(dim=1)


def _check_context(sequence: Tensor, context: int) -> None:
    require(context >= 1, "context", "be at least 1", context)
    rule = f"have more tokens than the context ({context})"
    require(len(sequence) > context, "sequence", rule, len(sequence))
