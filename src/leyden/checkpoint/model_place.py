"""Where a model lies or is to lie: what may be replaced there, and the hashes of its files."""

from pathlib import Path

from leyden.core.checksums import SUMS, write_checksums
from leyden.core.errors import UserError

SETTINGS = ("*.json", "*.jinja")
"""What people edit in a model's directory; tokenizer.json is among it, and compared as the weights are."""

CARD_FILE = "README.md"
CARD_MARK = "<!-- written by leyden card -->"
"""A line of that file by which it is known as ours, and goes when the model that it describes does."""

_OURS_TO_REPLACE = ("*.json", "*.safetensors", "*.jinja", SUMS)


def is_gguf(path: Path) -> bool:
    """Whether ``path`` is a model in one file, by its name, which ends in ``.gguf``."""
    return path.suffix == ".gguf" and path.is_file()


def is_card(path: Path) -> bool:
    """Whether ``path`` is a README.md that ``leyden card`` wrote."""
    return path.name == CARD_FILE and path.is_file() and CARD_MARK.encode() in path.read_bytes()


def note_files(directory: Path) -> None:
    """Write the hashes of a model's files, which :func:`load` compares: changed settings are said, others refused."""
    write_checksums(directory, [file for kind in ("*.safetensors", *SETTINGS) for file in directory.glob(kind)])


def refuse_to_overwrite(source: Path, target: Path, replace: bool) -> None:
    """A model that is there stays, unless it may be replaced; the one that is read always stays.

    Raises:
        UserError: ``target`` is ``source``, or is not free.
    """
    if target.exists() and source.exists() and target.resolve() == source.resolve():
        raise UserError(f"{target} is a model that is to be read itself; give another directory to write to.")
    refuse_to_replace_others(target)
    if not replace and target.is_dir() and any(target.iterdir()):
        raise UserError(
            f"{target} exists and is not empty; give a new directory, or replace the model in it (--force)."
        )


def refuse_other_file(target: Path, source: Path | None = None, replace: bool = True) -> None:
    """A GGUF file is written under a name by which it is known again, and over nothing but such a file.

    Args:
        target: of the file.
        source: the model that is read; None where it is in memory.
        replace: whether a file that is there may be replaced.

    Raises:
        UserError: ``target`` has another name, is ``source``, a directory or a file of another kind, or is not free.
    """
    if target.suffix != ".gguf":
        raise UserError(f"the layout gguf is one file; give it a name that ends in .gguf, in place of {target}.")
    if target.is_dir():
        raise UserError(f"{target} is a directory, and the layout gguf is one file; give another name.")
    if source is not None and source.exists() and target.exists() and target.resolve() == source.resolve():
        raise UserError(f"{target} is the model that is to be read itself; give another file to write to.")
    if target.exists() and not replace:
        raise UserError(f"{target} exists; give another name, or replace that file (--force).")
    if target.is_file():
        with target.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(f"{target} exists, and is no GGUF file; give another name, or move it away.")


def refuse_to_replace_others(directory: Path) -> None:
    """A directory is replaced whole, so it must be empty or hold nothing but a model.

    Raises:
        UserError: it holds something else.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file; give a directory for the model.")
    others = [p.name for p in sorted(directory.iterdir()) if not any(map(p.match, _OURS_TO_REPLACE)) and not is_card(p)]
    if others:
        raise UserError(
            f"{directory} holds other things than a model ({', '.join(others[:4])}), and it would be replaced whole; "
            "give a new directory."
        )
