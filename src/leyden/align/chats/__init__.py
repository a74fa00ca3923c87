"""Chats and preference pairs: read in the schemas in use, in one normal form, and made into tokens with their masks."""

from leyden.align.chats.chat import Chat, Preference, chat_of, preference_of
from leyden.align.chats.read import read_chats, read_preferences

__all__ = ["Chat", "Preference", "chat_of", "preference_of", "read_chats", "read_preferences"]
