"""A mixture plan as a picture."""

from pathlib import Path

from leyden.core.files import atomic_file
from leyden.data.token_budget.plan import MixturePlan

_COLORS = ("#b3471f", "#d9b38c", "#5b8cc0", "#1b3a6b")
"""From low quality to high."""
_LEAST_LABELLED = 0.06
"""Of the widest bar: a part that is narrower does not hold its figure."""


def draw_mixture(plan: MixturePlan, path: Path) -> None:
    """A bar a category, a colour a class, the epochs in it: tokens of the budget, as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(cell.category for cell in plan.cells))
    classes = list(dict.fromkeys(cell.quality for cell in plan.cells))
    with mpl.rc_context({"svg.hashsalt": "leyden", "font.size": 9}):
        figure = Figure(figsize=(7.0, 1.2 + 0.45 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        left = dict.fromkeys(names, 0.0)
        widest = max(sum(cell.tokens for cell in plan.cells if cell.category == name) for name in names)
        for rank, quality in enumerate(classes):
            cells = [cell for cell in plan.cells if cell.quality == quality]
            bars = axes.barh(
                [names.index(cell.category) for cell in cells],
                [cell.tokens for cell in cells],
                left=[left[cell.category] for cell in cells],
                color=_COLORS[rank % len(_COLORS)],
                label=quality,
            )
            labels = [f"{cell.epochs:.2f}x" if cell.tokens > _LEAST_LABELLED * widest else "" for cell in cells]
            axes.bar_label(bars, labels, label_type="center", color="white")
            for cell in cells:
                left[cell.category] += cell.tokens
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(f"tokens of {plan.tokens:,.0f}; in the bars, how often each class repeats")
        axes.legend(frameon=False, ncols=len(classes), loc="lower right", bbox_to_anchor=(1, 1))
        with atomic_file(path) as part:
            figure.savefig(part, format="svg", metadata={"Date": None})
