"""``[data] chats``: chats read, tokenised with their masks, and some of them held out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from leyden.align.chats.chat import Chat
from leyden.align.chats.read import read_chats
from leyden.align.chats.tokens import ChatCounts, held_out, tokenise_chats
from leyden.core.checksums import write_checksums
from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.log import progress, say
from leyden.data import TokenShards
from leyden.data.arrays import write_array
from leyden.data.shards import TokenFile
from leyden.data.tokenise import write_tokenised
from leyden.recipes.schema import Recipe
from leyden.tokenizer import Tokenizer

SET_ASIDE = "set_aside.jsonl"
"""In the folder of a run: every file and row of its chats that was set aside, with the reason."""

_DRAWS = "draws.npy"


def make_chats(recipe: Recipe, tokenizer: Tokenizer, directory: Path, tokens_directory: Path) -> None:
    """Read the chats that ``recipe`` names.

    Args:
        recipe: with ``data.chats``.
        tokenizer: the run's, which is saved in ``directory`` already.
        directory: of the run; gets what was counted (``data.json``) and :data:`SET_ASIDE`.
        tokens_directory: in it, gets the tokens.

    Raises:
        UserError: there are no chats, or none that can be trained on.
    """
    counts = ChatCounts()
    part = tokens_directory.with_name(tokens_directory.name + ".part")
    with _read(recipe, counts) as chats:
        write_tokenised(tokenise_chats(chats, tokenizer, counts), tokenizer, part)
    write_array(part / _DRAWS, np.array(counts.draws))
    facts = {"chats": str(counts), "held_out": f"{_num_held_out(counts, recipe):,}", "set_aside": counts.reasons()}
    with atomic_file(directory / "data.json") as file:
        file.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    with atomic_file(directory / SET_ASIDE) as file:
        lines = (json.dumps(asdict(reject), ensure_ascii=False) + "\n" for reject in counts.rejects)
        file.write_text("".join(lines), encoding="utf-8")
    write_checksums(directory, sorted((directory / "tokenizer").iterdir()))
    part.rename(tokens_directory)
    _tell(counts, recipe, directory / SET_ASIDE)


def read_chats_made(recipe: Recipe, tokens_directory: Path) -> tuple[TokenShards, TokenShards | None]:
    """What :func:`make_chats` left: the chats to train on, and those that are held out, if any."""
    draws = np.load(tokens_directory / _DRAWS, allow_pickle=False)
    return _parted(TokenShards.open(tokens_directory), draws, recipe)


def chats_in_memory(recipe: Recipe, tokenizer: Tokenizer) -> tuple[TokenShards, TokenShards | None]:
    """The same, with nothing written; what was read is said.

    Raises:
        UserError: as :func:`make_chats`.
    """
    counts = ChatCounts()
    with _read(recipe, counts) as chats:
        made = list(tokenise_chats(chats, tokenizer, counts))
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


def count_chats(recipe: Recipe) -> None:
    """Say how many chats there are, where the tokenizer is still to be trained.

    Raises:
        UserError: there are none.
    """
    counts = ChatCounts()
    with _read(recipe, counts) as chats:
        for chat in chats:
            counts.chats += 1
            counts.answers += sum(chat.learned)
    say(f"chats: {counts.chats:,} with {counts.answers:,} answers to learn; {len(counts.rejects):,} set aside")


@contextmanager
def _read(recipe: Recipe, counts: ChatCounts) -> Iterator[Iterator[Chat]]:
    """The chats, with a bar that says how many have been read.

    Raises:
        UserError: at the end, if there were none.
    """
    with progress("reading chats", None, "chats") as bar:

        def counted() -> Iterator[Chat]:
            for chat in read_chats(recipe.data.chats, counts.rejects):
                yield chat
                bar.advance()
            if not counts.chats:
                first = f" The first that was set aside: {counts.rejects[0]}." if counts.rejects else ""
                raise UserError(f"There is no chat to train on in {', '.join(recipe.data.chats)}.{first}")

        yield counted()


def _parted(shards: TokenShards, draws: np.ndarray, recipe: Recipe) -> tuple[TokenShards, TokenShards | None]:
    chosen = held_out(draws, recipe.data.held_out_fraction)
    if not chosen.any():
        return shards, None
    return shards.select(~chosen, "trained on"), shards.select(chosen, "held out")


def _num_held_out(counts: ChatCounts, recipe: Recipe) -> int:
    return int(held_out(np.array(counts.draws), recipe.data.held_out_fraction).sum())


def _tell(counts: ChatCounts, recipe: Recipe, listed: Path | None = None) -> None:
    say(f"chats: {counts}" + (f" ({listed})" if counts.rejects and listed else ""))
    for reject in counts.rejects[:3]:
        say(f"set aside: {reject}")
    num = _num_held_out(counts, recipe)
    say(f"{num:,} of the chats are held out" if num else "no chat is held out: that takes two different ones")
