"""The options of ``leyden eval``, each with its help."""

from pathlib import Path
from typing import Annotated

import typer

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A model's directory in any layout, a run, a checkpoint, or a hub id; with --compare, folders.",
        show_default=False,
    ),
]
Tasks = Annotated[
    list[str] | None, typer.Option("--task", help="What to measure; may be given several times.", show_default=False)
]
Endpoint = Annotated[
    str | None, typer.Option(help="Ask an OpenAI-compatible API instead, as http://host/v1.", show_default=False)
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="The model's name at the endpoint; its first one.", show_default=False)
]
ApiKeyEnv = Annotated[
    str | None, typer.Option(help="The environment variable that holds the endpoint's key.", show_default=False)
]
Tokenizer = Annotated[
    str | None,
    typer.Option(help="With --endpoint: a model whose tokenizer counts lengths and makes prompts.", show_default=False),
]
Lengths = Annotated[
    str | None, typer.Option(help="Tokens of a prompt and its answer, as 1k,32k,1m.", show_default=False)
]
Depths = Annotated[
    int | None, typer.Option(min=1, help="How many places of the needle, evenly spread.", show_default=False)
]
Samples = Annotated[int | None, typer.Option(min=1, help="Items in each cell of the grid.", show_default=False)]
Pairs = Annotated[str | None, typer.Option(help="mqar: how many keys and values, as 4,16,64.", show_default=False)]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many items a task.", show_default=False)]
Seed = Annotated[int, typer.Option(help="Of all that is drawn.")]
File = Annotated[
    Path | None, typer.Option(help="Published rows, or a folder of them, for tasks that have some.", show_default=False)
]
Text = Annotated[
    list[Path] | None,
    typer.Option(
        help="Files or folders of documents, or python:stdlib/PART; the standard library.", show_default=False
    ),
]
Subtasks = Annotated[str | None, typer.Option(help="Parts of a task, with commas between.", show_default=False)]
IncludePath = Annotated[
    list[Path] | None, typer.Option(help="lm-eval: folders of task files of your own.", show_default=False)
]
Shots = Annotated[int | None, typer.Option(min=0, help="lm-eval: examples before each question.", show_default=False)]
Chat = Annotated[bool, typer.Option("--chat", help="Put each question as the turn of a chat.")]
Apart = Annotated[bool, typer.Option("--apart", help="niah, mr_niah: hide one thing a prompt, as in the paper.")]
Cot = Annotated[bool, typer.Option("--cot", help="longbench_v2: let the model reason first (chain of thought).")]
Out = Annotated[
    Path | None, typer.Option(help="Keep rows and a page in this folder, and go on from it.", show_default=False)
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Draw one page of several folders of --out, named in place of MODEL.")
]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests at a time to an endpoint.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds for an answer of an endpoint.")]
Retries = Annotated[int, typer.Option(min=0, help="How often a failed request is sent again.")]
