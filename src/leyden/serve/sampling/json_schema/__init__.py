"""JSON schemas and patterns as grammars: enforced in full, or refused by name."""

from .patterns import PatternError
from .reading import SchemaError
from .rules import literal, pattern_grammar
from .writing import schema_grammar

__all__ = ["PatternError", "SchemaError", "literal", "pattern_grammar", "schema_grammar"]
