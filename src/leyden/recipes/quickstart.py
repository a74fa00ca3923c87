"""``leyden quickstart``: the shipped recipe of that name on whatever text is at hand, and a small model that chats."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from leyden.core.log import say
from leyden.recipes.loader import load_recipe
from leyden.recipes.runner import run

CHAT = "chat"
"""The folder of the second model, in that of the first."""
_CHAT_SHARE = 0.07
"""Of the minutes, what its training takes."""
_HIDE_IN_BYTES = 3_000_000
"""In about so much text numbers are hidden, for the model to learn to find them."""
_LEAST_SHARE = 0.1
"""Of a large text, in so much."""


def quickstart(*, text: Sequence[Path] = (), directory: Path = Path("runs/quickstart"), minutes: float = 5.0) -> Path:
    """From raw text to a model that completes it, and from tasks with a verifier to a small model that answers them.

    Args:
        text: files and folders; empty: the Python standard library's source.
        directory: the run's; the model that chats is in its folder ``chat``.
        minutes: about how long training takes, of both models together.

    Returns:
        The directory of the finished model that completes text.
    """
    settings = [f"stage.pretrain.minutes={minutes * (1 - _CHAT_SHARE)}"]
    if text:
        settings.append(f"data.text.text={[str(path) for path in text]}")
        share = _HIDE_IN_BYTES / max(sum(path.stat().st_size for path in _files(text)), 1)
        settings.append(f"data.recall_share={min(max(share, _LEAST_SHARE), 1.0):.2g}")
    final = run(load_recipe("quickstart", settings), directory)
    say("\na second, small model learns to answer:")
    chat = run(load_recipe("quickstart-chat", [f"stage.chat.minutes={minutes * _CHAT_SHARE}"]), directory / CHAT)
    say(
        "It has learned from these three tasks alone, with twelve words, one question a conversation: it knows no "
        "other words, does no sums, and has read no text. Between two questions type /new. Ask it: "
        f"leyden chat {chat} --temperature 0"
    )
    return final


def _files(text: Sequence[Path]) -> Iterable[Path]:
    """What there is of the files, and what is in the folders."""
    for path in text:
        yield from (file for file in (path, *path.rglob("*")) if file.is_file())
