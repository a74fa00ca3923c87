"""``[data] chats``, ``preferences`` and ``solutions``: rows of files, tokenised with their masks, some held out."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leyden.align.chats.read import read_chats, read_preferences
from leyden.align.chats.tokens import ChatCounts, RowCounts, held_out, tokenise_chats
from leyden.align.preference.pairs import PairCounts, tokenise_pairs
from leyden.align.process_rewards.solutions import SolutionCounts, read_solutions, tokenise_solutions
from leyden.core.checksums import write_checksums
from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.log import progress, say
from leyden.data import TokenShards
from leyden.data.arrays import write_array
from leyden.data.shards import TokenFile
from leyden.data.tokenise import TokenisedDocument, write_tokenised
from leyden.recipes.schema import Recipe
from leyden.recipes.sections import Rows
from leyden.tokenizer import Tokenizer

SET_ASIDE = "set_aside.jsonl"
"""In the folder of a run: every file and row that was set aside, with the reason."""

_DRAWS = "draws.npy"


@dataclass(frozen=True)
class _Kind:
    """Rows that one key of ``[data]`` names.

    Attributes:
        read: the rows of some paths; what is set aside goes to a list.
        tokenise: their documents, counted meanwhile.
        counts: what counts them.
        documents: how many each row has.
    """

    read: Callable[[tuple[str, ...], list[Any]], Iterator[Any]]
    tokenise: Callable[[Iterable[Any], Tokenizer, Any], Iterator[TokenisedDocument]]
    counts: type[RowCounts]
    documents: int


_KINDS: Mapping[Rows, _Kind] = {
    "chats": _Kind(read_chats, tokenise_chats, ChatCounts, 1),
    "preferences": _Kind(read_preferences, tokenise_pairs, PairCounts, 2),
    "solutions": _Kind(read_solutions, tokenise_solutions, SolutionCounts, 1),
}


def _kind(recipe: Recipe) -> _Kind:
    assert recipe.data.rows is not None, "a recipe on rows"
    return _KINDS[recipe.data.rows]


def make_rows(recipe: Recipe, tokenizer: Tokenizer, directory: Path, tokens_directory: Path) -> None:
    """Read the chats, pairs or solutions that ``recipe`` names.

    Args:
        recipe: with ``data.chats``, ``data.preferences`` or ``data.solutions``.
        tokenizer: the run's, which is saved in ``directory`` already.
        directory: of the run; gets what was counted (``data.json``) and :data:`SET_ASIDE`.
        tokens_directory: in it, gets the tokens.

    Raises:
        UserError: there are no rows, or none that can be trained on.
    """
    counts = _kind(recipe).counts()
    part = tokens_directory.with_name(tokens_directory.name + ".part")
    with _read(recipe, counts) as rows:
        write_tokenised(_kind(recipe).tokenise(rows, tokenizer, counts), tokenizer, part)
    write_array(part / _DRAWS, np.array(counts.draws))
    facts = {counts.noun: str(counts), "held_out": f"{_num_held_out(counts, recipe):,}", "set_aside": counts.reasons()}
    with atomic_file(directory / "data.json") as file:
        file.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    with atomic_file(directory / SET_ASIDE) as file:
        lines = (json.dumps(asdict(reject), ensure_ascii=False) + "\n" for reject in counts.rejects)
        file.write_text("".join(lines), encoding="utf-8")
    write_checksums(directory, sorted((directory / "tokenizer").iterdir()))
    part.rename(tokens_directory)
    _tell(counts, recipe, directory / SET_ASIDE)


def read_rows_made(recipe: Recipe, tokens_directory: Path) -> tuple[TokenShards, TokenShards | None]:
    """What :func:`make_rows` left: the rows to train on, and those that are held out, if any."""
    draws = np.load(tokens_directory / _DRAWS, allow_pickle=False)
    return _parted(TokenShards.open(tokens_directory), draws, recipe)


def rows_in_memory(recipe: Recipe, tokenizer: Tokenizer) -> tuple[TokenShards, TokenShards | None]:
    """The same, with nothing written; what was read is said.

    Raises:
        UserError: as :func:`make_rows`.
    """
    counts = _kind(recipe).counts()
    with _read(recipe, counts) as rows:
        made = list(_kind(recipe).tokenise(rows, tokenizer, counts))
    lengths = np.array([len(one.tokens) for one in made])
    file = TokenFile(
        tokens=np.concatenate([one.tokens for one in made]),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        learned=np.packbits(
            np.concatenate([one.learned for one in made if one.learned is not None]), bitorder="little"
        ),
    )
    _tell(counts, recipe)
    return _parted(
        TokenShards.over([file], Path(), "", vocab_size=tokenizer.vocab_size), np.array(counts.draws), recipe
    )


def count_rows(recipe: Recipe) -> None:
    """Say how many chats, pairs or solutions there are, where the tokenizer is still to be trained.

    Raises:
        UserError: there are none.
    """
    counts = _kind(recipe).counts()
    with _read(recipe, counts) as rows:
        for _ in rows:
            counts.rows += 1
    say(f"{counts.noun}: {counts.rows:,}; {counts.set_aside()}")


@contextmanager
def _read(recipe: Recipe, counts: RowCounts) -> Iterator[Iterator[Any]]:
    """The rows, with a bar that says how many have been read.

    Raises:
        UserError: at the end, if there were none.
    """
    assert recipe.data.rows is not None, "a recipe on rows"
    paths: tuple[str, ...] = getattr(recipe.data, recipe.data.rows)
    with progress(f"reading {counts.noun}", None, counts.noun) as bar:

        def counted() -> Iterator[Any]:
            for row in _kind(recipe).read(paths, counts.rejects):
                yield row
                bar.advance()
            if not counts.rows:
                first = f" The first that was set aside: {counts.rejects[0]}." if counts.rejects else ""
                raise UserError(f"There are no {counts.noun} to train on in {', '.join(paths)}.{first}")

        yield counted()


def _parted(shards: TokenShards, draws: np.ndarray, recipe: Recipe) -> tuple[TokenShards, TokenShards | None]:
    chosen = held_out(draws, recipe.data.held_out_fraction)
    if not chosen.any():
        return shards, None
    chosen = np.repeat(chosen, _kind(recipe).documents)
    return shards.select(~chosen, "trained on"), shards.select(chosen, "held out")


def _num_held_out(counts: RowCounts, recipe: Recipe) -> int:
    return int(held_out(np.array(counts.draws), recipe.data.held_out_fraction).sum())


def _tell(counts: RowCounts, recipe: Recipe, listed: Path | None = None) -> None:
    say(f"{counts.noun}: {counts}" + (f" ({listed})" if counts.rejects and listed else ""))
    for reject in counts.rejects[:3]:
        say(f"set aside: {reject}")
    num = _num_held_out(counts, recipe)
    noun = counts.noun
    say(f"{num:,} of the {noun} are held out" if num else f"no {noun[:-1]} is held out: that takes two different ones")
