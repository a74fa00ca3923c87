"""Fine-tuning, preferences and reinforcement learning beside TRL."""
