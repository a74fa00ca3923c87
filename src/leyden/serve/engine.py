"""The engine as a program uses it: whole batches, streams, and conversations on disk."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from leyden.core.errors import UserError
from leyden.model import Ranks
from leyden.serve import offline
from leyden.serve.completion import Chunk, Completion
from leyden.serve.conversation import (
    Contents,
    Conversation,
    fingerprint,
    load_conversation,
    read_conversation,
    restore_conversation,
    save_conversation,
)
from leyden.serve.engine_core import EngineCore
from leyden.serve.sampling import Sampling


class Engine(EngineCore):
    """An engine for offline batches, rollouts and a server; see :class:`EngineCore` for its settings."""

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling] | None = None,
    ) -> list[Completion]:
        """Complete each prompt by itself, all of them at once; a completion does not depend on the other prompts.

        Args:
            prompts: texts, which start a document, or token ids, which are taken as they are; an empty one starts
                from the token that begins a document.
            sampling: of all of them, or of each its own; :class:`Sampling`'s defaults where None.

        Returns:
            In the prompts' order; of each prompt its ``n`` completions. One that could not be finished says so in
            ``error``, and the others are whole.

        Raises:
            UserError: a prompt longer than the model's positions, a token outside its vocabulary, or a text, an empty
                prompt or a stop string for an engine without tokenizer.
        """
        if isinstance(prompts, str):
            raise UserError("generate takes a list of prompts; put the one prompt in a list, or use stream.")
        return offline.generate(self, prompts, sampling or Sampling())

    def stream(self, prompt: str | Sequence[int], sampling: Sampling | None = None) -> Iterator[Chunk]:
        """One completion of one prompt, token by token; the texts together are what :meth:`generate` gives.

        Raises:
            UserError: at once, as :meth:`generate`, or several completions are asked for; later, where the completion
                cannot be finished.
        """
        return offline.stream(self, prompt, sampling or Sampling())

    def save_conversation(
        self,
        path: Path,
        tokens: Sequence[int],
        messages: Sequence[Mapping[str, str]] = (),
        *,
        salt: str = "",
        mode: int | None = None,
    ) -> int:
        """Write what was read of ``tokens`` to a file (:func:`leyden.serve.conversation.save_conversation`)."""
        self._require_one_rank(path, "written")
        return save_conversation(path, self.memory, tokens, self._fingerprint, messages, salt, mode)

    def load_conversation(self, path: Path) -> Conversation:
        """Put what a file holds into the prefix cache (:func:`leyden.serve.conversation.load_conversation`)."""
        self._require_one_rank(path, "read")
        return load_conversation(path, self.memory, self._fingerprint, self.model.config.vocab_size)

    def read_conversation(self, path: Path) -> Contents:
        """What a file holds, checked; from any thread (:func:`leyden.serve.conversation.read_conversation`)."""
        self._require_one_rank(path, "read")
        return read_conversation(path, self.memory.pools, self._fingerprint, self.model.config.vocab_size)

    def restore_conversation(self, path: Path, contents: Contents, salt: str = "") -> int:
        """Put it into the prefix cache (:func:`leyden.serve.conversation.restore_conversation`)."""
        return restore_conversation(path, self.memory, contents, salt)

    @property
    def _fingerprint(self) -> str:
        return fingerprint(self.model, self.tokenizer)

    def _require_one_rank(self, path: Path, done: str) -> None:
        if type(self.model.ranks) is not Ranks:
            raise UserError(f"{path} is not {done}: several ranks hold a part of a conversation each; serve with one.")
