"""Labels: quality by a judge model and by classifiers, perplexity; documents rephrased by a model, or with planted
questions."""

from leyden.data.label.arpa import read_arpa, write_arpa
from leyden.data.label.classifier import Classifier
from leyden.data.label.kneser_ney import train_ngrams
from leyden.data.label.language_model import LanguageModel, ModelRequest, ModelSettings, OpenModel, Reply
from leyden.data.label.ngram import NGramModel
from leyden.data.label.perplexity import Perplexity
from leyden.data.label.quality import Quality
from leyden.data.label.recall import Recall
from leyden.data.label.rephrase import Rephrase

__all__ = [
    "Classifier",
    "LanguageModel",
    "ModelRequest",
    "ModelSettings",
    "NGramModel",
    "OpenModel",
    "Perplexity",
    "Quality",
    "Recall",
    "Rephrase",
    "Reply",
    "read_arpa",
    "train_ngrams",
    "write_arpa",
]
