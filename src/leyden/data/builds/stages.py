"""Every kind of stage, and where its class is; a class is imported when a recipe asks for it."""

from importlib import import_module

from leyden.data.stage import Stage

KINDS: dict[str, tuple[str, str]] = {
    "unicode": ("rules", "Unicode"),
    "pii": ("rules", "Personal"),
    "urls": ("rules", "Urls"),
    "metadata": ("rules", "Metadata"),
    "language": ("rules", "Language"),
    "script": ("rules", "Script"),
    "length": ("rules", "Length"),
    "c4": ("rules", "C4"),
    "gopher_quality": ("rules", "GopherQuality"),
    "gopher_repetition": ("rules", "GopherRepetition"),
    "fineweb": ("rules", "FineWeb"),
    "exact": ("dedup", "Exact"),
    "bloom": ("dedup", "Bloom"),
    "minhash": ("dedup", "MinHash"),
    "paragraphs": ("dedup", "Paragraphs"),
    "substrings": ("dedup", "Substrings"),
    "contamination": ("dedup", "Contamination"),
    "quality": ("label", "Quality"),
    "classifier": ("label", "Classifier"),
    "perplexity": ("label", "Perplexity"),
    "rephrase": ("label", "Rephrase"),
    "recall": ("label", "Recall"),
    "hold_out": ("hold_out", "HoldOut"),
    "mixture": ("token_budget", "PlanMixture"),
    "match_repetition": ("token_budget", "MatchRepetition"),
}
"""For each kind its module in ``leyden.data`` and its class."""


def stage_class(kind: str) -> type[Stage]:
    """The class of a kind in :data:`KINDS`."""
    module, name = KINDS[kind]
    return getattr(import_module(f"leyden.data.{module}"), name)
