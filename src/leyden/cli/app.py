"""``leyden VERB``: every verb is one small module here, which imports the room that does the work when it is called."""

import logging
import sys
import traceback
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from leyden import __version__
from leyden.cli import (
    bench,
    best,
    card,
    chat,
    convert,
    data,
    evaluate,
    generate,
    info,
    pairs,
    pivots,
    plan,
    prompts,
    quickstart,
    reward,
    run,
    runs,
    sample,
    serve,
    soup,
    steps,
    study,
    tokenizer,
    upcycle,
)
from leyden.core.errors import Interrupted, UserError
from leyden.core.launch import launched, tell_launcher
from leyden.core.log import LineHandler, console, say
from leyden.core.printable import printable
from leyden.core.waiting import settle_waiting

_ELSEWHERE = {
    "train": "run",
    "pretrain": "run",
    "finetune": "run",
    "launch": "run",
    "evaluate": "eval",
    "benchmark": "bench",
    "export": "convert",
    "merge": "soup",
    "average": "soup",
    "complete": "generate",
    "api": "serve",
    "server": "serve",
    "build": "data",
    "preprocess": "data",
    "tokenize": "tokenizer",
    "doctor": "info",
}
"""What other tools call a verb, and what it is called here."""


class _Verbs(TyperGroup):
    """The verbs; one that is unknown is answered with the one that was probably meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb of ``args``."""
        if args and args[0] not in self.commands:
            (meant,) = get_close_matches(args[0], [*self.commands, *_ELSEWHERE], 1) or [None]
            if meant in _ELSEWHERE:
                ctx.fail(f"No such command '{args[0]}'. Did you mean '{_ELSEWHERE[meant]}'?")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="leyden",
    cls=_Verbs,
    help="Long-context language models built on lightning attention: train, evaluate, generate, serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(quickstart.quickstart)
app.command()(run.run)
app.command()(info.info)
app.command()(plan.plan)
app.command()(generate.generate)
app.command()(chat.chat)
app.command()(serve.serve)
app.command(name="eval")(evaluate.evaluate)
app.command()(prompts.prompts)
app.command()(sample.sample)
app.command()(reward.reward)
app.command()(best.best)
app.command()(pairs.pairs)
app.command()(pivots.pivots)
app.command()(steps.steps)
app.command()(convert.convert)
app.command()(soup.soup)
app.command()(upcycle.upcycle)
app.command()(runs.report)
app.command()(card.card)
app.command()(runs.ls)
app.command()(runs.compare)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(data.app, name="data")
app.add_typer(study.app, name="study")
app.add_typer(bench.app, name="bench")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"leyden {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every detail.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[LineHandler()])
    logging.getLogger("leyden").setLevel(logging.DEBUG if verbose else logging.INFO)


_COMPUTING = ("chat", "eval", "generate", "prompts", "quickstart", "run", "sample", "serve", "steps", "study")
"""The verbs whose threads share work for minutes."""


def _settle_waiting(verb: list[str]) -> None:
    if not set(verb) & set(_COMPUTING):
        return
    others = settle_waiting()
    if others is not None:
        say(
            f"Other programs keep {others:.1f} cores busy, so threads sleep while they wait for each other "
            "(OMP_WAIT_POLICY=PASSIVE; set it to ACTIVE, and they spin)."
        )


def main() -> None:
    """Run the command line; a user's mistake ends in one paragraph and exit code 2, never in a traceback.

    Typer itself ends a verb quietly on Ctrl-C (exit code 130), and when the reader of its output goes away (1).
    """
    _settle_waiting(sys.argv[1:2])
    try:
        app()
    except UserError as error:
        console.print("error: ", style="bold red", end="")
        say(str(error))
        tell_launcher(f"error: {printable(str(error), lines=True)}", alone=launched().rank > 0 and not console.quiet)
        sys.exit(2)
    except Interrupted as stop:
        say(str(stop))
        sys.exit(130)
    except Exception:
        tell_launcher(traceback.format_exc(), alone=True)
        raise
