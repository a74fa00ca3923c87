"""The experiment as a document: hypothesis, data sets, items, model and decision rule."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from leyden.core.config import Config, read_toml
from leyden.core.errors import UserError
from leyden.model import ModelConfig, preset
from leyden.study.items import ItemSettings
from leyden.study.metric import Reading

DEMO = Path(__file__).with_name("demo.toml")
"""The experiment behind ``leyden study data demo``: a data set that is planted worse."""


class Variant(Config):
    """One data set, or models that were trained on it elsewhere."""

    text: tuple[Path, ...] | None = None
    """Files and folders to train on. None: the documents of ``[data]``."""
    shuffle_words: float = Field(default=0.0, ge=0, le=1)
    """The share of the documents, chosen by their content, whose words are put in a random order: a planted defect."""
    models: str | None = None
    """Trained models instead: a path with ``{seed}`` in it, as in ``runs/clean-{seed}/final``."""

    @model_validator(mode="after")
    def _names_its_seeds(self) -> Self:
        if self.models is not None and "{seed}" not in self.models:
            raise ValueError("models must have {seed} in it, one directory a seed")
        return self


class DataSettings(Config):
    """The documents that variants are made from and items are built of."""

    text: tuple[Path, ...] | None = None
    """Files and folders. None: the source of Python's standard library."""
    max_bytes: int | None = Field(default=None, ge=1)
    """UTF-8 bytes of documents that a variant is trained on, at most; which ones depends on their content alone. None:
    all."""
    held_out_fraction: float = Field(default=0.1, gt=0, lt=1)
    """The share of the documents that items are built from."""
    vocab_size: int = Field(default=1024, ge=300)
    """Of the tokenizer, trained on the documents of ``[data]`` and shared by all variants."""


class TrainSettings(Config):
    """How each model is trained: alike but for its data and its seed."""

    model: dict[str, Any] = Field(default_factory=dict)
    """``preset`` and any field of the model's configuration."""
    steps: int = Field(default=120, ge=1)
    batch_tokens: int = Field(default=2048, ge=1)
    seq_len: int = Field(default=512, ge=1)
    lr: float = Field(default=1e-2, gt=0)

    def model_config_of(self, vocab_size: int) -> ModelConfig:
        """The model's shape.

        Raises:
            UserError: an unknown preset or field.
        """
        fields = dict(self.model)
        return preset(fields.pop("preset", "tiny"), **{"vocab_size": vocab_size, **fields})


class Experiment(Config):
    """The whole of it. H1 is one-sided: the treatment's mean log acc_norm^2 exceeds the baseline's."""

    name: str
    hypothesis: str
    """In words: why the treatment should be better."""
    reading: Reading = "geometric"
    """Of byte normalisation; both are reported, this one decides."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    power: float = Field(default=0.8, gt=0.5, lt=1)
    test: Literal["crossed", "runs", "items"] = "crossed"
    """What decides. ``crossed``: runs and items are both samples. ``runs``: of these items alone. ``items``: of these
    trained models alone, which mistakes the luck of a seed for an effect of the data."""
    seeds: int | None = Field(default=None, ge=2)
    """Runs of each variant. None: as many as find ``effect``."""
    effect: float | None = Field(default=None, gt=0)
    """The smallest effect that matters. None: the plan says what ``seeds`` can find."""
    max_seeds: int = Field(default=20, ge=2)
    """A plan that needs more is refused."""
    pilot_seeds: int = Field(default=3, ge=2)
    """Runs of the baseline and of the obviously worse variant that the noise is measured on; the test uses others."""
    full_epochs: dict[str, float] | None = None
    """How often the full run, for which this one stands, uses documents of ``baseline`` and ``treatment``: a plan whose
    runs repeat them otherwise is refused. None: not compared, only said."""
    min_discriminability: float = 2.0
    """Benchmarks whose Delta_obvious / sigma_seed is less are left out; the paper prints no threshold."""
    weights: dict[str, float] | None = None
    """Of the benchmarks; they are scaled to sum to 1. None: equal."""
    baseline: Variant
    treatment: Variant
    obvious: Variant = Variant(shuffle_words=1.0)
    """A variant that is obviously worse than the baseline, for the pilot."""
    data: DataSettings = DataSettings()
    items: ItemSettings = ItemSettings()
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _says_how_large(self) -> Self:
        if self.seeds is None and self.effect is None:
            raise ValueError("give seeds, or the smallest effect that matters, from which their number follows")
        if self.items.path is None and any(v.models for v in self.variants().values()):
            raise ValueError(
                "models that were trained elsewhere need [items] path: what text they saw is not known here"
            )
        return self

    def variants(self) -> dict[str, Variant]:
        """All three, by name."""
        return {"baseline": self.baseline, "treatment": self.treatment, "obvious": self.obvious}


def load_experiment(path: Path) -> Experiment:
    """Read an experiment from a TOML file.

    Raises:
        UserError: no such file, an unknown key, or a value out of range.
    """
    experiment = Experiment.parse(read_toml(path), str(path))
    for name, variant in experiment.variants().items():
        missing = [str(place) for place in variant.text or () if not place.exists()]
        if missing:
            raise UserError(f"{path}: [{name}] text does not exist: {', '.join(missing)}.")
    return experiment
