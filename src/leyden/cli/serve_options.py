"""The options of ``leyden serve``: what it says of each, and under which heading."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

_ENGINE = "Engine"
_CLIENTS = "Clients"
_RANKS = "Several ranks, under torchrun"


def _option(help: str, panel: str | None = None, **more: Any) -> Any:
    """An option that says nothing where it is left out: defaults are those of the settings it belongs to."""
    return typer.Option(help=help, rich_help_panel=panel, show_default=False, **more)


Model = Annotated[str, typer.Argument(help="A model's directory in any layout, or a hub id.")]
Host = Annotated[str | None, _option("Address to listen on; 127.0.0.1. Others need an API key.")]
Port = Annotated[int | None, _option("Port; 8000. 0 takes a free one.")]
ApiKey = Annotated[
    list[str] | None,
    _option("Whoever has this key may ask; may be given several times.", envvar="LEYDEN_API_KEY"),
]
ApiKeyFile = Annotated[Path | None, _option("A file with one key a line.")]
ServedModelName = Annotated[
    list[str] | None, _option("What clients call the model; its directory's name by default. Several are possible.")
]
Int8 = Annotated[
    Literal["none", "layers", "all"], typer.Option(help="Weights in 8 bits: of the layers, or of everything.")
]
MaxSequences = Annotated[int | None, _option("Sequences read or generated at once; 32.", _ENGINE)]
StepTokens = Annotated[int | None, _option("Tokens that one step reads at most; 2048.", _ENGINE)]
MaxQueue = Annotated[int | None, _option("Requests that wait at most; 256.", _ENGINE)]
KvGigabytes = Annotated[float | None, _option("Memory for keys and values; half of what is free, or less.", _ENGINE)]
CacheGigabytes = Annotated[
    float | None, _option("Memory for the prefix cache's snapshots; a tenth of what is free.", _ENGINE)
]
SwapGigabytes = Annotated[
    float | None, _option("Host memory for sequences that make room; a tenth of what is free.", _ENGINE)
]
Decoder = Annotated[str | None, _option("What reads single tokens: auto, native or torch.", _ENGINE)]
Speculation = Annotated[str | None, _option("Where guesses come from: none, prompt or draft.", _ENGINE)]
Draft = Annotated[str | None, _option("The small model that guesses, for --speculation draft.", _ENGINE)]
DraftTokens = Annotated[int | None, _option("Tokens guessed at a time; 4.", _ENGINE)]
Conversations = Annotated[
    Path | None, _option("Keep chats that name a conversation in this directory, over the server's end.")
]
MaxBodyBytes = Annotated[int | None, _option("Larger requests are refused; 16 MiB.", _CLIENTS)]
MaxConnections = Annotated[int | None, _option("Further ones are closed; 2048.", _CLIENTS)]
RequestSeconds = Annotated[float | None, _option("In which a request must arrive; 60.", _CLIENTS)]
IdleSeconds = Annotated[float | None, _option("After which an idle connection closes; 30.", _CLIENTS)]
StallSeconds = Annotated[float | None, _option("After which a client that takes nothing is cut off; 30.", _CLIENTS)]
KeepAliveSeconds = Annotated[float | None, _option("Between comments while a stream has nothing to say; 5.", _CLIENTS)]
DrainSeconds = Annotated[float | None, _option("For running requests to finish after SIGTERM; 30.", _CLIENTS)]
RequestLog = Annotated[bool | None, _option("A line in the log for each request that has ended; on.")]
Tp = Annotated[int | None, _option("Ranks that share heads and vocabulary; all of them.", _RANKS, min=1)]
Ep = Annotated[int | None, _option("Ranks that have experts of their own; all, where that goes evenly.", _RANKS, min=1)]
Etp = Annotated[int | None, _option("Ranks that share each expert; all, where ep does not go.", _RANKS, min=1)]
