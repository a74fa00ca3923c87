"""``leyden VERB``: every verb is one small module here, which imports the room that does the work when it is called."""

import logging
import sys

import typer

from leyden.cli import (
    bench,
    chat,
    convert,
    data,
    evaluate,
    generate,
    info,
    plan,
    quickstart,
    run,
    serve,
    study,
    tokenizer,
)
from leyden.core.errors import Interrupted, UserError
from leyden.core.log import LineHandler, console, say

app = typer.Typer(
    name="leyden",
    help="Long-context language models built on lightning attention: train, evaluate, generate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(quickstart.quickstart)
app.command()(run.run)
app.command()(info.info)
app.command()(plan.plan)
app.command()(generate.generate)
app.command()(chat.chat)
app.command()(serve.serve)
app.command(name="eval")(evaluate.evaluate)
app.command()(convert.convert)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(data.app, name="data")
app.add_typer(study.app, name="study")
app.add_typer(bench.app, name="bench")


@app.callback()
def _options(verbose: bool = typer.Option(False, "--verbose", "-v", help="Log every detail.")) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[LineHandler()])
    logging.getLogger("leyden").setLevel(logging.DEBUG if verbose else logging.INFO)


def main() -> None:
    """Run the command line; a user's mistake ends in one paragraph and exit code 2, never in a traceback.

    Typer itself ends a verb quietly on Ctrl-C (exit code 130), and when the reader of its output goes away (1).
    """
    try:
        app()
    except UserError as error:
        console.print("error: ", style="bold red", end="")
        say(str(error))
        sys.exit(2)
    except Interrupted as stop:
        say(str(stop))
        sys.exit(130)
