"""``leyden info --flops``: what a budget of operations buys, said in words."""

from leyden.core.chips import Chip
from leyden.core.errors import UserError
from leyden.core.quantities import count_text
from leyden.model import ModelConfig, count_model
from leyden.study.scaling_laws import LAWS

TYPICAL_MFU = 0.4
"""The share of a chip's peak that large runs reach: 38 to 43 % in Table 4 of Llama 3 (arXiv 2407.21783)."""


def budget_text(flops: float, chip: Chip, config: ModelConfig | None = None, length: int = 8192) -> str:
    """What published laws propose for a budget, how long it takes, and what it is for one model.

    Args:
        flops: of the whole training.
        chip: on which the days are counted.
        config: of a model, whose tokens under this budget are said too.
        length: of its sequences.

    Raises:
        UserError: a budget that is no number above 0.
    """
    if not 0 < flops < float("inf"):
        raise UserError(f"--flops is a number of operations above 0, as in 1e21; given {flops:g}.")
    lines = [f"{flops:.3g} FLOPs of training"]
    found = [(law, law.propose(flops)) for law in LAWS]
    width = max(len(law.name) for law in LAWS)
    lines.append(f"{'law':<{width}}  {'parameters':>10}  {'tokens':>8}  {'a parameter':>11}  {'loss':>5}")
    for law, best in found:
        sizes = (
            f"{count_text(best.parameters):>10}  {count_text(best.tokens):>8}  {best.tokens / best.parameters:>11.3g}"
        )
        loss = "" if best.loss is None else f"  {best.loss:>5.3f}"
        lines.append(f"{law.name:<{width}}  {sizes}{loss}")
    for source in dict.fromkeys(law.source for law in LAWS):
        lines.append(f"{'; '.join(law.name for law in LAWS if law.source == source)}: {source}")
    lines.append(
        "A law holds for its authors' data, tokenizer and shapes, and their losses are not comparable with each other."
    )
    days = flops / chip.flops_per_second / 86_400
    lines.append(
        f"On one {chip.title}: {_days(days / TYPICAL_MFU)} at {TYPICAL_MFU:.0%} of its peak of "
        f"{chip.flops_per_second / 1e12:g} TFLOP/s, as large runs reach (Llama 3, arXiv 2407.21783, Table 4); "
        f"{_days(days)} at the peak; {chip.source}. On n chips, an n-th of it."
    )
    if config is not None:
        each = count_model(config).training_flops_per_token(length)
        tokens, active = flops / each, count_model(config).active_parameters
        lines.append(
            f"This model: {each:.4g} FLOPs a token in training at {length:,} tokens, so {count_text(tokens)} tokens, "
            f"{tokens / active:.3g} for each of its {count_text(active)} active parameters."
        )
    return "\n".join(lines)


def _days(days: float) -> str:
    return f"{days:,.3g} days" if days >= 1 else f"{days * 24:.3g} hours"
