"""The engine as a program uses it: batches, streams, new weights, and conversations on disk."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch

from leyden.core.errors import UserError
from leyden.model import HybridLM, Ranks
from leyden.parallel.reshard import Resharding
from leyden.serve import offline
from leyden.serve.completion import Chunk, Completion
from leyden.serve.conversation import (
    Conversation,
    ConversationContents,
    fingerprint,
    load_conversation,
    read_conversation,
    restore_conversation,
    save_conversation,
)
from leyden.serve.engine_core import EngineCore
from leyden.serve.memory import check_free
from leyden.serve.new_weights import Running, updating
from leyden.serve.sampling import Sampling


class Engine(EngineCore):
    """An engine for offline batches, rollouts and a server; see :class:`EngineCore` for its settings."""

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling] | None = None,
        *,
        adapter: str | Sequence[str] = "",
    ) -> list[Completion]:
        """Complete each prompt by itself, all of them at once; a completion does not depend on the other prompts.

        Args:
            prompts: texts, which start a document, or token ids, which are taken as they are; an empty one starts
                from the token that begins a document.
            sampling: of all of them, or of each its own; :class:`Sampling`'s defaults where None.
            adapter: that computes all of them, or each its own (:func:`leyden.serve.adapters.add_adapters`); ``""``
                for the model itself.

        Returns:
            In the prompts' order; of each prompt its ``n`` completions. One that could not be finished says so in
            ``error``, and the others are whole.

        Raises:
            UserError: a prompt longer than the model's positions, a token outside its vocabulary, or a text, an empty
                prompt or a stop string for an engine without tokenizer.
        """
        if isinstance(prompts, str):
            raise UserError("generate takes a list of prompts; put the one prompt in a list, or use stream.")
        return offline.generate(self, prompts, sampling or Sampling(), adapter)

    def stream(self, prompt: str | Sequence[int], sampling: Sampling | None = None) -> Iterator[Chunk]:
        """One completion of one prompt, token by token; the texts together are what :meth:`generate` gives.

        Raises:
            UserError: at once, as :meth:`generate`, or several completions are asked for; later, where the completion
                cannot be finished.
        """
        return offline.stream(self, prompt, sampling or Sampling())

    def text_logprobs(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """The log-probability of each token of each text but the first, in nats.

        The texts are read as prompts are, also tokens that the engine sampled before. Sampling computes a token's
        log-probability by the recurrence, with other roundings. On a CPU, :func:`leyden.model.text_logprobs` of a model
        with the same weights gives the same bits.

        Args:
            texts: each of at least one token id.

        Raises:
            UserError: as :meth:`generate`, or a text could not be read to its end.
        """
        found = []
        for made in self.generate(texts, Sampling(max_tokens=1, temperature=0, prompt_logprobs=0)):
            if made.prompt_logprobs is None:
                raise UserError(f"a text of {made.prompt_tokens} tokens was not read to its end: {made.error}.")
            found.append([token.logprob for token in made.prompt_logprobs if token is not None])
        return found

    def update_weights(
        self, source: HybridLM | Mapping[str, torch.Tensor] | Resharding | None = None, *, running: Running = "refuse"
    ) -> int:
        """Take new weights, and forget what was read with the old ones; between two steps.

        Every completion is made by one version of the weights. The weights are written into the tensors of the
        engine's model, in its dtypes; one in 8 bits is rounded anew.

        Args:
            source: another model of the same shape, or tensors by the names of ``model.state_dict()``. None where the
                engine's own model was trained in place. Where several ranks train and serve, a
                :class:`leyden.parallel.Resharding` to the engine's model: every rank then calls this at the same
                moment, on an engine that has the same requests.
            running: what becomes of the requests that the engine has. ``"refuse"``: there must be none. ``"finish"``:
                they end first, by the old weights, and requests that come meanwhile wait for the new ones.
                ``"abort"``: they end at once as ``"aborted"``, with the tokens that they have.

        Returns:
            The new version: :attr:`weights_version`.

        Raises:
            UserError: weights that do not fit, or requests that run; then nothing has changed.
        """
        update = None if source is None or source is self.model else updating(self.model, source)
        seen = self.weights_version
        self._quiet(running, "new weights cannot come", "a completion would be made by both the old and the new ones")
        if not isinstance(source, Resharding):
            self.arrivals.tell("update")
        if update is not None:
            update.put()
        if update is not None or self.weights_version == seen:  # else it was seen that they were written to
            self._renew()
        return self.weights_version

    def release(self, *, running: Running = "refuse") -> None:
        """Give back the memory for states, keys, values, snapshots and swapped sequences; between two steps.

        The weights stay where they are, and :meth:`update_weights` may give new ones. Requests are refused until
        :meth:`acquire`. Nothing happens the second time.

        Args:
            running: as of :meth:`update_weights`.

        Raises:
            UserError: requests run; then nothing has changed.
        """
        if self.released:
            return
        self._quiet(running, "memory cannot be given back", "their states, keys and values lie in it")
        self.arrivals.tell("release")
        self.released = True
        device = self.memory.pools.device
        self._allocate()
        self._begin()
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def acquire(self) -> None:
        """Take as much memory again as the engine had before :meth:`release`, with nothing in it.

        Raises:
            UserError: there is not so much; the engine is then released as before.
        """
        if not self.released:
            return
        check_free(
            self._sizes, self.model.ranks.held(self.model.config), self.model.dtype, self.model.norm.weight.device
        )
        self.arrivals.tell("acquire")
        self.statistics.weights_version += self._watch.changed()
        self.released = False
        try:
            self._allocate()
            self._begin()
        except BaseException:
            self.released = True
            self._allocate()
            self._begin()
            raise

    def _quiet(self, running: Running, what: str, why: str) -> None:
        """See to it that no request runs.

        Raises:
            UserError: some do, and ``running`` is ``"refuse"``: ``what``, and ``why`` not.
        """
        if running not in get_args(Running):
            raise UserError(f"running is one of {', '.join(map(repr, get_args(Running)))}; given {running!r}.")
        if self.released:
            return
        self._take_in("arrivals")
        num_running = len(self._running())
        if num_running and running == "refuse":
            raise UserError(
                f"{what} while {num_running} {'request runs' if num_running == 1 else 'requests run'}: {why}. Step the "
                "engine until they have ended, or say running='finish', which does that, or running='abort', which "
                "ends them with the tokens that they have. Nothing was changed."
            )
        while running == "finish" and self._scheduler.has_requests:
            self._advance(lambda: self.arrivals.tell("step", [], []))
        self._end_running("aborted", None)

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

    def read_conversation(self, path: Path) -> ConversationContents:
        """What a file holds, checked; from any thread (:func:`leyden.serve.conversation.read_conversation`)."""
        self._require_one_rank(path, "read")
        return read_conversation(path, self.memory.pools, self._fingerprint, self.model.config.vocab_size)

    def restore_conversation(self, path: Path, contents: ConversationContents, salt: str = "") -> int:
        """Put it into the prefix cache (:func:`leyden.serve.conversation.restore_conversation`)."""
        self.require_memory()
        return restore_conversation(path, self.memory, contents, salt)

    @property
    def _fingerprint(self) -> str:
        return fingerprint(self.model, self.tokenizer)

    def _require_one_rank(self, path: Path, done: str) -> None:
        self.require_memory()
        if type(self.model.ranks) is not Ranks:
            raise UserError(f"{path} is not {done}: several ranks hold a part of a conversation each; serve with one.")
