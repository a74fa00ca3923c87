"""``leyden chat``: a conversation in the terminal, or over a pipe, one line a turn."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from leyden.serve import Chat

_HELP = """\
/new            forget the conversation and start another
/system TEXT    start another, in which the model is told TEXT first
/help           this list
/exit           leave (so does Ctrl-D); Ctrl-C stops an answer"""


def chat(
    model: Annotated[str, typer.Argument(help="A model's directory in any layout, or a hub id.")],
    system: Annotated[str | None, typer.Option(help="What the model is told first.", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option(help="The most tokens of an answer.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token every time.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Draw among the tokens that hold this much probability.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.", show_default=False)] = None,
) -> None:
    """Talk with a model; it keeps its state, so that each turn reads no more than what is new."""
    from leyden.checkpoint import load
    from leyden.serve import Chat, Engine, Sampling

    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    engine = Engine(*load(model))
    conversation = Chat(engine, system=system, sampling=sampling)
    for line in _terminal_lines() if sys.stdin.isatty() else sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "/exit":
            return
        if command == "/help":
            print(_HELP)
        elif command in ("/new", "/system"):
            system = argument.strip() or (system if command == "/new" else None)
            conversation = Chat(engine, system=system, sampling=sampling)
        elif command.startswith("/"):
            print(f"{command} is not a command; there are\n{_HELP}")
        elif command:
            _answer(conversation, line.strip())


def _terminal_lines() -> Iterator[str]:
    """What the user types, with history and pasted line breaks kept; ends with Ctrl-D."""
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    print("/help lists the commands; Ctrl-D leaves.")
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _answer(conversation: "Chat", text: str) -> None:
    """Print the answer as it comes; Ctrl-C, or a conversation that grew too long, ends the answer and not the chat."""
    from leyden.core.errors import UserError
    from leyden.core.log import console

    try:
        for piece in conversation.send(text):
            print(piece, end="", flush=True)
        print()
    except KeyboardInterrupt:
        print(" [stopped]")
    except UserError as error:
        console.print(f"{error} /new starts another conversation.", markup=False, highlight=False)
