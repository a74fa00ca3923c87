"""From a base model to one that answers: chats, prompts, rewards, and what post-training stages minimise."""

__all__: list[str] = []
