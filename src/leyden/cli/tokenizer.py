"""``leyden tokenizer``: train one, or use one."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train a byte-level BPE tokenizer, or encode text with one.", no_args_is_help=True)


@app.command()
def train(
    text: Annotated[list[Path], typer.Argument(help="Files or folders of documents.")],
    directory: Annotated[Path, typer.Option("--dir", help="Where to write tokenizer.json and its configuration.")],
    vocab_size: Annotated[int, typer.Option(min=1, help="Tokens in all, the 256 bytes and the special ones counted.")],
) -> None:
    """Train a tokenizer on documents."""
    from leyden.data import Reject, read_documents
    from leyden.tokenizer import Tokenizer

    rejects: list[Reject] = []
    tokenizer = Tokenizer.train((d.text for d in read_documents(text, rejects)), vocab_size=vocab_size)
    tokenizer.save(directory)
    print(f"{directory} holds a tokenizer of {tokenizer.vocab_size} tokens ({len(rejects)} documents set aside)")


@app.command()
def encode(
    directory: Annotated[Path, typer.Argument(help="A directory with tokenizer.json.")],
    text: Annotated[str | None, typer.Argument(help="What to encode; standard input where left out.")] = None,
) -> None:
    """Print the ids of a text, one line of numbers."""
    from leyden.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(directory)
    print(*tokenizer.encode(sys.stdin.read() if text is None else text))
