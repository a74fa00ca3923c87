"""The settings of an engine: memory, number of sequences, tokens a step."""

from typing import Literal

from pydantic import Field

from leyden.core.config import Config


class EngineConfig(Config):
    """The settings of an engine: options of ``leyden serve``, and ``[serve]`` in the recipe of a run that is served."""

    max_sequences: int = Field(default=32, ge=1)
    """Sequences that are read or generated at once; each holds a state."""
    step_tokens: int = Field(default=2048, ge=256)
    """Tokens that one step reads at most: of every sequence that decodes one, and of prompts what is left. Four times
    as many where nobody waits for single tokens (Engine.generate)."""
    max_queue: int = Field(default=256, ge=0)
    """Requests that wait at most; a further one is refused."""
    kv_gigabytes: float | None = Field(default=None, gt=0)
    """Memory for keys and values. None: what the sequences need at their longest, or half of what is free if less."""
    cache_gigabytes: float | None = Field(default=None, ge=0)
    """Memory for snapshots of states, from which a text read before goes on. None: a tenth of what is free; 0: none."""
    swap_gigabytes: float | None = Field(default=None, ge=0)
    """Host memory for sequences that had to make room for others. None: a tenth of what is free."""
    decoder: Literal["auto", "native", "graph", "torch"] = "auto"
    """What reads single tokens: one compiled call a step on a CPU, one CUDA graph a step on a GPU, the model's own
    modules op by op, or the first that can."""
    speculation: Literal["none", "prompt", "draft"] = "none"
    """Where guesses of the next tokens come from, which one step then verifies: the text so far, or a small model."""
    draft_tokens: int = Field(default=4, ge=1, le=16)
    """Tokens guessed at a time."""
