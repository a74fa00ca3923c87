"""The tokenizer: text to ids and back, training, and files that stock transformers opens.

It wraps a byte-level BPE of Hugging Face ``tokenizers``. Text is only ever text: the spelling of a special token in it
does not become that token, unless the caller asks.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer as Backend

from leyden.core.errors import UserError
from leyden.core.log import log_once, progress
from leyden.core.panics import panics_are_user_errors
from leyden.tokenizer.answers import AnswerFinder
from leyden.tokenizer.bpe import assemble, begin, byte_spelling
from leyden.tokenizer.chat import ChatTemplate, Message, minimax_template
from leyden.tokenizer.directory import TokenizerFiles, read_files, write_files
from leyden.tokenizer.encoder import Encoder
from leyden.tokenizer.special_tokens import BOS, MINIMAX_NAMES, SPECIAL_TOKENS, find_ids, make_special, with_end
from leyden.tokenizer.strangers import check_backend
from leyden.tokenizer.training import Training, text_needed, train
from leyden.tokenizer.words import WordCounts

_BYTES = byte_spelling()


class Tokenizer:
    """Byte-level BPE with MiniMax's special tokens and chat template, or whatever a directory holds.

    Make one with :meth:`train` or :meth:`load`. A document is ``[bos_id] + encode(text) + [eod_id]``; ``eos_id`` ends a
    turn of a chat.
    """

    def __init__(self, backend: Backend, files: TokenizerFiles) -> None:
        """Wrap ``backend``, whose tokens named in ``files`` become special.

        Raises:
            UserError: the backend is not byte-level BPE, multiplies text, or has no token that ends a sequence; or an
                end token is none.
        """
        check_backend(backend)
        files = with_end(backend, files)
        make_special(backend, [*files.names.values(), *files.others])
        backend.encode_special_tokens = True  # the spelling of a special token in text is text
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._files = files
        self._ids = find_ids(backend, files.names)
        added = backend.get_added_tokens_decoder()
        self._special = {index: token for index, token in added.items() if token.special}
        self._encoder = Encoder(backend, self._special)
        self._end_ids = self._checked_ends()

    @classmethod
    def train(
        cls, texts: Iterable[str], *, vocab_size: int, allow_smaller: bool = False, special: Sequence[str] = ()
    ) -> Self:
        """Learn a vocabulary of exactly ``vocab_size`` from ``texts``: 256 bytes, merges, 5 special tokens or more.

        Args:
            texts: documents.
            vocab_size: the 256 bytes and the special tokens count.
            allow_smaller: texts that support fewer tokens give as many as they support.
            special: further special tokens, behind the five.

        Raises:
            UserError: ``vocab_size`` is below 261, or more than the texts support; or a text holds a lone surrogate.
        """
        sizes = {"vocab_size": vocab_size, "allow_smaller": allow_smaller}
        return cls.from_words(WordCounts.of(_counted(texts)), **sizes, special=special)[0]

    @classmethod
    def from_words(
        cls,
        counts: WordCounts,
        *,
        vocab_size: int,
        targets: Mapping[str, float] | None = None,
        allow_smaller: bool = False,
        special: Sequence[str] = (),
    ) -> tuple[Self, Training]:
        """As :meth:`train`, from words that are counted already; and how it went.

        Args:
            counts: the words of the documents.
            vocab_size: the 256 bytes and the special tokens count.
            targets: bytes per token to reach in each language, by giving its words more weight.
            allow_smaller, special: as for :meth:`train`.

        Raises:
            UserError: as :meth:`train`; a target that cannot be one; or counts that do not fit 64 bits.
        """
        all_special = tuple(dict.fromkeys((*SPECIAL_TOKENS, *special)))
        smallest = 256 + len(all_special)
        if vocab_size < smallest:
            raise UserError(
                f"A vocabulary of {vocab_size} is too small: the 256 bytes and {len(all_special)} special tokens "
                f"make {smallest}. Ask for that many or more."
            )
        num_tokens = vocab_size - len(all_special)
        training = train(counts, num_tokens, targets=targets, allow_smaller=allow_smaller)
        reached = len(training.merges.tokens)
        if reached < num_tokens and not allow_smaller:
            raise UserError(
                f"The text supports a vocabulary of {reached + len(all_special)}, not of {vocab_size}: after "
                f"{reached - 256} merges no pair of tokens occurs twice. Ask for that many or fewer, or "
                f"{text_needed(counts, reached, num_tokens)}."
            )
        backend = assemble(training.merges)
        make_special(backend, all_special)
        begin(backend, BOS)
        template = minimax_template()
        others = tuple(token for token in all_special if token not in MINIMAX_NAMES.values())
        return cls(backend, TokenizerFiles(backend.to_str(), MINIMAX_NAMES, others, template)), training

    @classmethod
    def load(cls, directory: Path | str) -> Self:
        """Read ``tokenizer.json`` and the files beside it (``tokenizer_config.json``, ...) from ``directory``.

        Raises:
            UserError: a file is missing or broken, or the tokenizer is not byte-level.
        """
        return cls.from_files(read_files(Path(directory)), f"{directory}/tokenizer.json")

    @classmethod
    def from_files(cls, found: TokenizerFiles, source: str) -> Self:
        """The tokenizer that a directory's files describe, wherever they were read.

        Args:
            found: what they say.
            source: what an error calls the place of the definition.

        Raises:
            UserError: it is broken, or not byte-level.
        """
        broken = f"{source} is not a tokenizer"
        try:
            with panics_are_user_errors(f"{broken}."):
                backend = Backend.from_str(found.definition)
        except UserError:
            raise
        except Exception as error:  # tokenizers raises bare Exception for a file it cannot parse
            raise UserError(f"{broken}: {error}.") from None
        return cls(backend, found)

    def save(self, directory: Path | str) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``; transformers' ``AutoTokenizer`` opens them.

        Where more tokens end a text than the two that the tokenizer names, ``generation_config.json`` lists them all.
        """
        write_files(Path(directory), self.files, self.bos_id)

    @property
    def files(self) -> TokenizerFiles:
        """What its files say; ``end_ids`` only where more tokens end a text than the two that the tokenizer names."""
        further = self.end_ids if len(self.end_ids) > len({self.eos_id, self.eod_id}) else ()
        return replace(self._files, definition=self._backend.to_str(pretty=True), end_ids=further)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides how text becomes ids, in hexadecimal.

        What other programs put around a text (the post-processor) is not part of it.
        """
        definition = self._backend.to_str()
        start = definition.index('"post_processor":') + len('"post_processor":')
        _, end = json.JSONDecoder().raw_decode(definition, start)
        return hashlib.sha256(f"{definition[:start]}null{definition[end:]}".encode()).hexdigest()

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokens) + 1

    @property
    def bos_id(self) -> int:
        """The token that begins a document or a turn."""
        return self._ids.bos

    @property
    def eos_id(self) -> int:
        """The token that ends a turn of a chat."""
        return self._ids.eos

    @property
    def eod_id(self) -> int:
        """The token that ends a document."""
        return self._ids.eod

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Every token that ends a text: :attr:`eos_id`, :attr:`eod_id`, and those that the model's own files name.

        Those are the ``eos_token_id`` of ``generation_config.json`` and ``config.json``, a number or a list.
        """
        return self._end_ids

    @property
    def special_tokens(self) -> dict[str, int]:
        """Every special token and its id."""
        return {token.content: index for index, token in self._special.items()}

    @property
    def chat_template(self) -> str | None:
        """The source of the chat template, in Jinja; None where there is none."""
        return self._files.chat_template

    @property
    def tool_template(self) -> str | None:
        """The source of the template of chats with tools; :attr:`chat_template`, unless the model has one for them."""
        return self._files.tool_template or self._files.chat_template

    def is_special(self, token_id: int) -> bool:
        """Whether ``token_id`` is a special token."""
        return token_id in self._special

    def encode(self, text: str, *, bos: bool = False, allow_special: bool = False) -> list[int]:
        """The ids of ``text``; nothing is added to them, unless asked for.

        Args:
            text: any string of Unicode characters.
            bos: whether :attr:`bos_id` comes first, as in every document that a model is trained on. A prompt given to
                the engine as a string has it, and so have the ids that stock transformers gives by default.
            allow_special: whether the spelling of a special token becomes that token. Never for the text of strangers.

        Raises:
            UserError: ``text`` holds a lone surrogate, which is no character.
        """
        begin = [self.bos_id] if bos else []
        if allow_special:
            return begin + self._encoder.encode_special(text)
        return begin + self._encoder.encode([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text as an int32 array [num_tokens], on all cores; special tokens in them stay text.

        Raises:
            UserError: one of them holds a lone surrogate.
        """
        return self._encoder.encode(list(texts))

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any bytes: as :meth:`encode` where they are UTF-8, one token a byte where they are not."""
        text = data.decode("utf-8", errors="surrogateescape")  # a byte that is not UTF-8 becomes U+DC80 to U+DCFF
        ids: list[int] = []
        for piece in re.split("([\udc80-\udcff]+)", text):
            if piece and "\udc80" <= piece[0] <= "\udcff":
                ids += [self._byte_ids[ord(character) - 0xDC00] for character in piece]
            else:
                ids += self.encode(piece)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD, an id without a token becomes nothing."""
        return self.decode_bytes(ids, skip_special=skip_special).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = False) -> bytes:
        """The bytes of ``ids``; those of a special token are its spelling."""
        return b"".join(
            self.token_bytes(int(index)) for index in ids if not (skip_special and int(index) in self._special)
        )

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none where ``token_id`` has no token (a padded vocabulary)."""
        return self._tokens.get(token_id, b"")

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The chat as text, to be read; :meth:`encode_chat` gives its tokens, and tells text from special tokens.

        Raises:
            UserError: no chat template, a malformed message, or one that the template refuses.
        """
        return self._template(tools).render(messages, tools, add_generation_prompt, variables)

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The chat as ids, in which only what the template itself writes becomes a special token.

        With ``continue_final_message`` they end with the text of the last message, which is left open for the model to
        go on (and no answer is begun behind it). ``variables`` are further ones that the template knows.

        Raises:
            UserError: no chat template, a malformed message, or one that the template refuses or leaves out though it
                is to be continued.
        """
        special = list(self.special_tokens)
        if continue_final_message:
            text, mark = self._template(tools).render_open(messages, tools, special, variables)
        else:
            text, mark = self._template(tools).render_marked(messages, tools, add_generation_prompt, special, variables)
        return self._encoder.encode_special(text, mark)

    def encode_answers(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """A whole chat as ids, and who wrote each: what a model is trained on that is to answer like the assistant.

        An answer goes from where the template would let the model begin to the token that ends it, included
        (:mod:`leyden.tokenizer.answers`). The text is cut at both ends of each, so that no token lies in two parts, and
        an answer has the ids that a model gives it that is asked for one.

        Returns:
            ids, [num_tokens] int32; and [num_tokens] int32, the place of the message whose answer each token is part
            of, -1 for all that the assistant did not write.

        Raises:
            UserError: as :meth:`encode_chat`; or the template leaves it undecided where an answer begins or ends.
        """
        found = self._answer_finder(tools).find(messages, tools, variables)
        ids: list[int] = []
        writers: list[int] = []
        for text, message in found.pieces():
            piece = self._encoder.encode_special(text, found.mark)
            ids += piece
            writers += [message] * len(piece)
        return np.array(ids, np.int32), np.array(writers, np.int32)

    def _answer_finder(self, tools: Sequence[Mapping[str, Any]] | None) -> AnswerFinder:
        template = self._template(tools)
        if template not in self._finders:
            ends = [self.decode([index]) for index in self.end_ids if self.is_special(index)]
            self._finders[template] = AnswerFinder(template, list(self.special_tokens), ends)
        return self._finders[template]

    @cached_property
    def _finders(self) -> dict[ChatTemplate, AnswerFinder]:
        return {}

    def _checked_ends(self) -> tuple[int, ...]:
        """The tokens that end a text, by the tokenizer and by the model's files."""
        files = self._files
        limit = max(self.vocab_size, files.model_vocab_size) if files.end_ids else 0
        wrong = [index for index in files.end_ids if not 0 <= index < limit]
        if wrong:
            raise UserError(
                f"The model's files name {wrong[0]} as an end token (eos_token_id in config.json or "
                f"generation_config.json), and its vocabulary has the ids 0..{limit - 1}; correct the file."
            )
        return tuple(dict.fromkeys([self.eos_id, self.eod_id, *files.end_ids]))

    @cached_property
    def _tokens(self) -> dict[int, bytes]:
        """The bytes of every token."""
        added = {index: token.content.encode() for index, token in self._backend.get_added_tokens_decoder().items()}
        learnt = self._backend.get_vocab(with_added_tokens=False)
        try:
            return {index: bytes(map(_BYTES.__getitem__, token)) for token, index in learnt.items()} | added
        except KeyError as error:
            raise UserError(
                f"The vocabulary is not spelt in bytes: {error} stands for none; Leyden reads byte-level BPE."
            ) from None

    @cached_property
    def _byte_ids(self) -> list[int]:
        """The token of each single byte."""
        ids = {content: index for index, content in self._tokens.items() if len(content) == 1}
        return [ids[bytes([byte])] for byte in range(256)]

    def _template(self, tools: Sequence[Mapping[str, Any]] | None) -> ChatTemplate:
        return self._tool_chat if tools and self._files.tool_template is not None else self._chat

    @cached_property
    def _tool_chat(self) -> ChatTemplate:
        return ChatTemplate(self._files.tool_template or "", self._files.names)

    @cached_property
    def _chat(self) -> ChatTemplate:
        source = self._files.chat_template
        if source is None:
            raise UserError("This tokenizer has no chat template; add a chat_template.jinja to its directory.")
        if f"{BOS}ai name=assistant" in source and "tool_calls" not in source:
            log_once(
                __name__,
                "The tokenizer's chat template is MiniMax's first, which knows content as lists of parts alone and no "
                "tool calls; Leyden's own, of the same format with both, is taken in its place.",
            )
            source = minimax_template()
        return ChatTemplate(source, self._files.names)


def _counted(texts: Iterable[str]) -> Iterator[str]:
    """``texts``, with a bar that says how many have been read."""
    total = len(texts) if isinstance(texts, Sequence) else None
    with progress("counting words", total, "documents") as bar:
        for text in texts:
            yield text
            bar.advance()
