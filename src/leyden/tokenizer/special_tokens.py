"""Special tokens: those of MiniMax, and which of a tokenizer's tokens begin and end documents and turns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from leyden.core.errors import UserError
from leyden.tokenizer.directory import TokenizerFiles

BOS = "<beginning_of_sentence>"
EOS = "<end_of_sentence>"
EOD = "<end_of_document>"
SPECIAL_TOKENS = (BOS, EOS, EOD, "<function_call>", "<image>")
# As in the released configuration, where the unknown token, which byte-level BPE never needs, ends a document.
MINIMAX_NAMES = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOD}


@dataclass(frozen=True)
class SpecialIds:
    """The ids of the tokens that begin and end things.

    Attributes:
        bos: begins a document.
        eos: ends a turn of a chat.
        eod: ends a document.
    """

    bos: int
    eos: int
    eod: int


def make_special(backend: Backend, tokens: Sequence[str]) -> None:
    """Mark ``tokens`` as special, adding those that are missing; one that already is keeps its properties."""
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    missing = [token for token in tokens if token not in special]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])


def with_end(backend: Backend, files: TokenizerFiles) -> TokenizerFiles:
    """``files`` that name a token which ends a sequence, by the model's files where the tokenizer's name none."""
    if "eos_token" in files.names or backend.token_to_id(EOS) is not None:
        return files
    tokens = [backend.id_to_token(index) for index in files.end_ids[:1] if 0 <= index < 1 << 32]
    return replace(files, names={**files.names, "eos_token": tokens[0]}) if tokens and tokens[0] else files


def find_ids(backend: Backend, names: Mapping[str, str]) -> SpecialIds:
    """The ids of the tokens that begin and end things: as configured, else by MiniMax's names.

    Where none begins a document or ends one, the token that ends a sequence does (as in GPT-2).
    """
    eos = backend.token_to_id(names.get("eos_token", EOS))
    if eos is None:
        raise UserError(
            "The tokenizer does not say which token ends a sequence: add a tokenizer_config.json with an eos_token."
        )
    bos = backend.token_to_id(names.get("bos_token", BOS))
    eod = backend.token_to_id(EOD)
    return SpecialIds(bos=eos if bos is None else bos, eos=eos, eod=eos if eod is None else eod)
