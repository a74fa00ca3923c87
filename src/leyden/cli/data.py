"""``leyden data``: build a corpus, look into it, count it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from leyden.data.label import LanguageModel

app = typer.Typer(help="Documents to a clean corpus: build, inspect, stats, stages.", no_args_is_help=True)
_Directory = Annotated[Path, typer.Argument(help="A build's directory.")]


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="A data recipe (TOML).")],
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where the build is kept; runs/NAME by default.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one value, as in --set build.workers=4.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Check the recipe and print it in full; do nothing.")] = False,
) -> None:
    """Run a recipe's stages; what is done stays done, and the same command goes on after an interruption."""
    from leyden.core.config import dump_toml
    from leyden.data.builds.recipe import load_build_recipe
    from leyden.data.builds.use import build_and_report

    loaded = load_build_recipe(recipe, tuple(settings or ()))
    if dry_run:
        print(dump_toml(loaded.model_dump(mode="json")), end="")
        return
    build_and_report(loaded, directory or Path("runs") / recipe.stem, _local_model)


def _local_model(directory: str) -> "LanguageModel":
    from leyden.recipes.local_model import LocalModel  # torch, where a stage asks a model

    return LocalModel(directory)


@app.command()
def inspect(
    directory: _Directory,
    id: Annotated[str | None, typer.Argument(help="A document: what each stage did to it.")] = None,
    stage: Annotated[str | None, typer.Option(help="Documents that this stage dropped.")] = None,
    reason: Annotated[str | None, typer.Option(help="Documents dropped for a reason that contains this.")] = None,
    clusters: Annotated[bool, typer.Option(help="Clusters of near-duplicates, the largest first.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = 10,
) -> None:
    """Show documents: why each was dropped or kept, what was changed, near-duplicates side by side."""
    from leyden.data.builds.use import show_clusters, show_dropped, show_story

    if clusters:
        show_clusters(directory, limit)
    elif id is not None:
        show_story(directory, id)
    else:
        show_dropped(directory, stage, reason, limit)


@app.command()
def stats(
    directory: _Directory,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Count a build: what each stage kept and dropped, and what the corpus is like."""
    from leyden.data.builds.use import show_stats

    show_stats(directory, as_json=json)


@app.command()
def stages(
    kind: Annotated[str | None, typer.Argument(help="A kind of stage: its keys, with defaults.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print all tables of a recipe, as a page.")] = False,
) -> None:
    """What a data recipe may say: the kinds of stages, or every key of one."""
    from leyden.data.builds.use import show_stages

    show_stages(kind, as_page=markdown)
