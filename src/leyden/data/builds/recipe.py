"""What a data recipe says: sources, and an ordered list of stages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from leyden.core.config import Config, override, read_toml
from leyden.core.errors import UserError, suggest
from leyden.data.builds.stages import KINDS, stage_class
from leyden.data.readers import SourceSettings
from leyden.data.stage import Stage
from leyden.data.tokenise import TextLayout


class BuildSection(Config):
    """How the build runs; nothing here changes which documents come out."""

    workers: int = Field(default=0, ge=0)
    """Processes; 0: one a core."""
    runner: Literal["native", "ray"] = "native"
    """Where they run: this machine, or the cluster that Ray finds."""
    shard_bytes: int = Field(default=32 << 20, ge=1 << 10)
    """Of source files in a shard: the grain at which a killed build goes on."""
    max_rejected: float = Field(default=0.1, ge=0, le=1)
    """The share of documents that may be unreadable; beyond it the build stops."""


class TokensSection(Config):
    """What becomes of the documents that are left: token shards, in ``tokens/``."""

    tokenizer: Path | None = None
    """A directory with ``tokenizer.json``, which is copied into the build. None: one is trained on the documents that
    are left."""
    vocab_size: int = Field(default=32_768, ge=261)
    """Tokens of a tokenizer that is trained."""
    allow_smaller: bool = False
    """Train on documents too few for so many tokens as well, with as many as they support."""
    special_tokens: tuple[str, ...] = ()
    """Further special tokens of a tokenizer that is trained, as those of fill-in-the-middle."""
    by: Literal["all", "source", "group"] = "all"
    """What shares a folder of shards, which a training mixture weighs as one: everything; each source; or each group
    that a ``mixture`` stage made."""
    layout: TextLayout = TextLayout()
    """How dialogues, and questions with answers, become text."""


class BuildRecipe(Config):
    """A data recipe (TOML)."""

    build: BuildSection = BuildSection()
    source: tuple[SourceSettings, ...] = Field(min_length=1)
    stage: tuple[SerializeAsAny[Stage], ...] = ()
    tokens: TokensSection | None = None
    """None: the build ends with documents."""

    @field_validator("stage", mode="before")
    @classmethod
    def _known(cls, stages: Any) -> Any:
        if not isinstance(stages, list | tuple):
            raise ValueError("stage must be a list of tables, written [[stage]]")
        return tuple(stage if isinstance(stage, Stage) else _stage(i, stage) for i, stage in enumerate(stages))

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [source.name for source in self.source]
        if len(set(names)) < len(names):
            raise ValueError(f"sources must have different names; given {', '.join(names)}")
        return self


def _stage(index: int, table: Any) -> Stage:
    if not isinstance(table, Mapping) or "kind" not in table:
        raise ValueError(f"stage {index} needs a kind; allowed: {', '.join(KINDS)}")
    if table["kind"] not in KINDS:
        raise ValueError(f"stage {index}: no kind '{table['kind']}'{suggest(str(table['kind']), KINDS)}")
    try:
        return stage_class(table["kind"]).parse(table, f"stage {index} ({table['kind']})")
    except UserError as error:
        raise ValueError(str(error).removesuffix(".")) from None


def load_build_recipe(path: Path, settings: tuple[str, ...] = ()) -> BuildRecipe:
    """A recipe from a TOML file, with ``path=value`` settings over it.

    Raises:
        UserError: the file, a key or a value is wrong.
    """
    return BuildRecipe.parse(override(read_toml(path), settings), str(path))
