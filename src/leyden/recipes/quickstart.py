"""``leyden quickstart``: the shipped recipe of that name on whatever text is at hand, and a small model that chats."""

from collections.abc import Sequence
from pathlib import Path

from leyden.core.log import say
from leyden.recipes.loader import load_recipe
from leyden.recipes.runner import run

CHAT = "chat"
"""The folder of the second model, in that of the first."""
_CHAT_SHARE = 0.07
"""Of the minutes, what its training takes."""


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
        settings.append(f"data.text={[str(path) for path in text]}")
    final = run(load_recipe("quickstart", settings), directory)
    say("\na second, small model learns to answer:")
    chat = run(load_recipe("quickstart-chat", [f"stage.chat.minutes={minutes * _CHAT_SHARE}"]), directory / CHAT)
    say(
        "It has learned from these three tasks alone, with twelve words, one question a conversation: it knows no "
        "other words, does no sums, and has read no text. Between two questions type /new. Ask it: "
        f"leyden chat {chat} --temperature 0"
    )
    return final
