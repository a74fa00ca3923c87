"""Sets of prompts: read, tagged, freed of duplicates and of evaluation sets, held out in part, weighed by difficulty.

Reading order: ``rows.py`` (one normal form), ``tags.py``, ``cleaning.py`` (duplicates and contamination),
``difficulty.py`` (pass rates of a policy, and the weights that follow), ``build.py`` (``leyden prompts``).
"""

from leyden.align.prompts.rows import PromptRow, read_prompts

__all__ = ["PromptRow", "read_prompts"]
