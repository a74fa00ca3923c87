"""``leyden bench``: speed beside other software and beside what the hardware allows."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure Leyden beside other software, and its GPU kernels.", no_args_is_help=True)

Output = Annotated[Path | None, typer.Option(help="Where to write the figures as JSON.", show_default=False)]


Beside = Annotated[
    int, typer.Option(min=0, help="Busy processes of one thread that compute all the while.", show_default=False)
]


@app.command()
def cpu(
    quick: Annotated[bool, typer.Option(help="Small shapes and few repeats: checks that all of it runs.")] = False,
    beside: Beside = 0,
    output: Output = None,
) -> None:
    """Training, prefill, decoding and memory beside transformers on two CPU threads."""
    from leyden.bench import run_cpu

    run_cpu(quick=quick, beside=beside, output=output)


@app.command()
def regress(
    rows: Annotated[
        list[str] | None, typer.Argument(metavar="[ROW...]", help="Rows, or how their names begin; all by default.")
    ] = None,
    base: Annotated[str, typer.Option(metavar="REV", help="The commit to compare with.")] = "HEAD",
    rounds: Annotated[int, typer.Option(min=3, help="Turns of each side.")] = 9,
    quick: Annotated[bool, typer.Option(help="Small shapes: checks that all of it runs.")] = False,
    beside: Beside = 0,
    output: Output = None,
) -> None:
    """This checkout beside another commit, in turns; 1 if a row fell by more than the noise, which is measured too."""
    from leyden.bench.regress.run import lost, run_regress
    from leyden.core.log import say

    fell = lost(run_regress(base, rows or (), rounds=rounds, beside=beside, quick=quick, output=output))
    if fell:
        say(f"slower than {base} by more than the noise: {', '.join(fell)}")
        raise typer.Exit(1)


@app.command()
def serve(
    llama: Annotated[
        str | None,
        typer.Option(metavar="PYTHON", help="An interpreter that has llama-cpp-python.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option(help="Small shapes and few repeats: checks that all of it runs.")] = False,
    beside: Beside = 0,
    output: Output = None,
) -> None:
    """The engine on two CPU threads: many streams, chats, long contexts, int8; beside transformers and llama.cpp."""
    from leyden.bench.serve.run import run_serve

    run_serve(quick=quick, beside=beside, output=output, llama=llama)


@app.command("eval")
def evaluate(
    quick: Annotated[bool, typer.Option(help="A small shape and few questions: checks that all of it runs.")] = False,
    beside: Beside = 0,
    output: Output = None,
) -> None:
    """1,000 multiple-choice questions and 20 needles beside lm-eval's own backend on transformers, on two threads."""
    from leyden.bench.evaluate.run import run_eval

    run_eval(quick=quick, beside=beside, output=output)


@app.command()
def align(
    quick: Annotated[bool, typer.Option(help="A small shape and few rows: checks that all of it runs.")] = False,
    beside: Beside = 0,
    output: Output = None,
) -> None:
    """Fine-tuning, DPO, GRPO and its rollouts beside TRL's trainers on transformers, on two CPU threads."""
    from leyden.bench.align.run import run_align

    run_align(quick=quick, beside=beside, output=output)


@app.command()
def gpu(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long all of it may take.")] = 8,
    only: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Measure the rows whose name it is found in.", show_default=False),
    ] = None,
    output: Output = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny shapes: checks that all of it runs.")] = False,
) -> None:
    """The GPU tests, then every kernel, training and serving beside the hardware's floor, the worst first."""
    from leyden.bench.gpu.run import run_gpu

    if run_gpu(only, output, minutes=minutes, quick=quick).has_red_tests:
        raise typer.Exit(1)


@app.command()
def planted(
    text: Annotated[list[Path], typer.Argument(help="Folders of documentation and source to build a corpus of.")],
    directory: Annotated[Path, typer.Option("--dir", help="Where the build is kept.")] = Path("runs/planted"),
    megabytes: Annotated[float, typer.Option(min=0, help="Text that must be read at least.")] = 500,
    output: Output = None,
) -> None:
    """Build a corpus with planted copies, junk, leaks and damage, and say which were found; 1 if any was missed."""
    from leyden.bench.data.planted_run import run_planted

    if not run_planted(text, directory, megabytes=megabytes, output=output):
        raise typer.Exit(1)


@app.command()
def data(
    text: Annotated[
        list[Path] | None, typer.Argument(help="Files and folders of text; Python's own source by default.")
    ] = None,
    megabytes: Annotated[float, typer.Option(min=0.1, help="Text to work on.")] = 20,
    quick: Annotated[bool, typer.Option(help="Little text and one repeat: checks that all of it runs.")] = False,
    output: Output = None,
) -> None:
    """Rules, deduplication, tokenising and reading of tokens beside datatrove, core against core; memory by size."""
    from leyden.bench.data.run import run_data

    run_data(text or (), megabytes=megabytes, quick=quick, output=output)


@app.command()
def routers(
    quick: Annotated[bool, typer.Option(help="Two ranks and few tokens: checks that all of it runs.")] = False,
    output: Output = None,
) -> None:
    """Tokens dropped where eight ranks share the experts' capacity, beside each rank with a share of its own."""
    from leyden.bench.parallel.routers import run_routers

    run_routers(quick=quick, output=output)


@app.command()
def traffic(
    quick: Annotated[bool, typer.Option(help="Two ranks and short rows: checks that all of it runs.")] = False,
    output: Output = None,
) -> None:
    """Bytes that context ranks exchange in LASP+ and in ring attention: predicted beside counted, by length."""
    from leyden.bench.parallel.traffic import run_traffic

    run_traffic(quick=quick, output=output)
