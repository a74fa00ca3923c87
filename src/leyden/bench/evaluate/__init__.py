"""``leyden bench eval``: multiple choice beside lm-eval's own backend on transformers."""
