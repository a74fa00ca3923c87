"""Reports as one HTML page that needs nothing else: the page itself, and plots in its colours.

Plots are SVG text to stand inside the page, coloured by the page's own CSS variables. They are drawn without pyplot, so
without global state. The same data gives the same bytes: ids come from a fixed salt and no date is written.
"""

import importlib.metadata
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Colours that only stand for a variable of the page, which has a light and a dark value for each.
_VARIABLES = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--accent)",
    "#050505": "var(--second)",
}
INK, MUTED, LINE, ACCENT, SECOND = _VARIABLES

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "leyden",
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
}
_MADE_BY = b"<footer>Made by Leyden"
WIDE, HALF = 10.6, 5.1
"""Widths in inches; with them a point is the same on the page in either."""


class Drawing:
    """A figure with one set of axes while it is drawn, and its SVG afterwards."""

    def __init__(self, figure: "Figure", axes: "Axes") -> None:
        self.figure, self.axes = figure, axes
        self.svg = ""


@contextmanager
def drawing(name: str, width: float = HALF, height: float = 2.4) -> Iterator[Drawing]:
    """Axes to draw on, in the page's style; when the block ends, ``svg`` is what was drawn.

    Args:
        name: of the plot, unlike any other's on the page.
        width, height: in inches; :data:`WIDE` for the page's whole width, :data:`HALF` for half of it.
    """
    # Commands that draw nothing start without it.
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        drawn = Drawing(figure, figure.add_subplot())
        yield drawn
        drawn.svg = _svg(figure, name)


def color_map(colors: Sequence[str]) -> "Colormap":
    """A map that goes through these colours, evenly."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("page", list(colors))


@dataclass(frozen=True)
class Plot:
    """A plot as the page's ``figures`` macro shows it."""

    title: str
    svg: str
    caption: str = ""
    wide: bool = False


def refuse_to_replace_others(path: Path) -> None:
    """See to it that a page may be written to ``path``: nothing is there, or a page that Leyden made.

    Raises:
        UserError: something else is there.
    """
    if path.is_file():
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 1024))
            if _MADE_BY in file.read():
                return
    elif not path.exists():
        return
    raise UserError(f"{path} is there and is no page that Leyden made; name another place for the page.")


def write_page(path: Path, template: Path, facts: Mapping[str, Any]) -> None:
    """Render ``template`` (which extends ``page.html`` of this folder) with ``facts``, and write it to ``path``.

    What others wrote is escaped: markup, and characters that hide text or cannot be written.

    Raises:
        UserError: ``path`` is there and is no page of Leyden's, or cannot be written.
    """
    refuse_to_replace_others(path)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template.name).render(version=_version(), **facts)
    with atomic_file(path) as part:
        part.write_text(printable(page, lines=True), encoding="utf-8")


def _version() -> str:
    """Of the installed package; nothing where Leyden runs from a checkout that is not installed."""
    try:
        return importlib.metadata.version("leyden")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _svg(figure: "Figure", name: str) -> str:
    """The ``<svg>`` element alone, coloured by the page's variables, its ids beginning with ``name``."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)
    svg = re.sub(r"(\bid=\"|\"#|url\(#)", rf"\g<1>{name}-", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"\bfont: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return re.sub(
        r"<svg .*?viewBox=\"([^\"]*)\".*?>",
        rf'<svg class="plot" role="img" aria-label="{name}" viewBox="\1">',
        svg,
        count=1,
        flags=re.DOTALL,
    )
