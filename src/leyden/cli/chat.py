"""``leyden chat``: a conversation in the terminal, or over a pipe, one line a turn."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leyden.cli.options import Device

if TYPE_CHECKING:
    from leyden.serve import Chat

_HELP = """\
/new            forget the conversation and start another
/system TEXT    start another, in which the model is told TEXT first
/save FILE      keep the conversation in FILE, now and when it ends; --resume FILE goes on with it
/help           this list
/exit           leave (so does Ctrl-D); Ctrl-C stops an answer"""


def chat(
    model: Annotated[str, typer.Argument(help="A model's directory in any layout, a run, a checkpoint, or a hub id.")],
    system: Annotated[str | None, typer.Option(help="What the model is told first.", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option(help="The most tokens of an answer.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token every time.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Draw among the tokens that hold this much probability.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.", show_default=False)] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the conversation in this file, or begin it; it is kept there.", show_default=False
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Talk with a model; it keeps its state, so that each turn reads no more than what is new."""
    from leyden.checkpoint import load
    from leyden.checkpoint.origin import NEVER_CONVERSED, never_conversed
    from leyden.core.device import find_device
    from leyden.core.errors import UserError
    from leyden.core.log import say
    from leyden.serve import Chat, Engine, Sampling

    saved = resume if resume is not None and resume.exists() else None
    if saved is not None and system is not None:
        raise UserError(f"--system begins a conversation and {saved} holds one; leave one of them out.")
    if resume is not None and not resume.parent.is_dir():
        raise UserError(f"--resume {resume}: there is no directory {resume.parent} to keep the conversation in.")
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    engine = Engine(*load(model, dtype="auto", device=find_device(device)), max_sequences=1)

    def begin(system: str | None) -> Chat:
        return Chat(engine, system=system, sampling=sampling)

    kept = _Kept(begin(system) if saved is None else Chat.resume(engine, saved, sampling), resume)
    if never_conversed(model):
        say(NEVER_CONVERSED)
    if saved is not None:
        say(f"goes on with {saved}: {len(kept.conversation.messages)} messages")
    try:
        for line in _terminal_lines() if sys.stdin.isatty() else sys.stdin:
            command, _, argument = line.strip().partition(" ")
            argument = argument.strip()
            if command == "/exit":
                return
            if command == "/help":
                print(_HELP)
            elif command == "/save":
                kept.save(argument)
            elif command in ("/new", "/system"):
                kept.leave()
                system = argument or (system if command == "/new" else None)
                kept = _Kept(begin(system))
            elif command.startswith("/"):
                print(f"{command} is not a command; there are\n{_HELP}")
            elif command:
                _answer(kept.conversation, line.strip())
    finally:
        kept.leave()


class _Kept:
    """A conversation, and the file that it is kept in, if any."""

    def __init__(self, conversation: "Chat", path: Path | None = None) -> None:
        self.conversation = conversation
        self._path = path
        self._num_saved = len(conversation.messages)

    def save(self, name: str) -> None:
        """Keep it in the file ``name`` from now on, or in the one it has; that it cannot be kept is said."""
        from leyden.core.errors import UserError
        from leyden.core.log import say

        path = Path(name) if name else self._path
        if path is None:
            say("/save needs the name of a file: /save FILE")
            return
        try:
            self.conversation.save(path)
        except UserError as error:
            say(str(error))
            return
        self._path, self._num_saved = path, len(self.conversation.messages)
        say(f"saved to {path}")

    def leave(self) -> None:
        """Save what was said since it was last saved, where it has a file."""
        if self._path is not None and len(self.conversation.messages) != self._num_saved:
            self.save("")


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
