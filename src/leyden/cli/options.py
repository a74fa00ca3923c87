"""Options that several verbs have."""

from typing import Annotated

import typer

Device = Annotated[
    str | None,
    typer.Option(help="Where it computes: cpu, cuda, cuda:1, ...; the GPU where there is one.", show_default=False),
]
