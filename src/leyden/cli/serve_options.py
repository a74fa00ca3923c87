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


Model = Annotated[str, typer.Argument(help="A model's directory in any layout, a run, a checkpoint, or a hub id.")]
Host = Annotated[str | None, _option("Address to listen on; 127.0.0.1. Others need an API key.")]
Port = Annotated[int | None, _option("Port; 8000. 0 takes a free one.")]
Uds = Annotated[Path | None, _option("Path of a Unix socket to listen on, in place of an address.")]
RootPath = Annotated[str | None, _option("The path under which a proxy shows the server, such as /llm.")]
AllowOrigin = Annotated[
    list[str] | None,
    _option("Pages of this origin (https://chat.example.org) may ask from a browser; may be given several times."),
]
ApiKey = Annotated[
    list[str] | None,
    _option("Whoever has this key may ask; may be given several times.", envvar="LEYDEN_API_KEY"),
]
ApiKeyFile = Annotated[Path | None, _option("A file with one key a line.")]
ServedModelName = Annotated[
    list[str] | None, _option("What clients call the model; its run's or directory's name. Several are possible.")
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=DIR",
        help="An adapter on the model, unmerged, which requests ask for as model NAME; may be given several times.",
        show_default=False,
    ),
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
Decoder = Annotated[str | None, _option("What reads single tokens: auto, native, graph or torch.", _ENGINE)]
Speculation = Annotated[str | None, _option("Where guesses come from: none, prompt or draft.", _ENGINE)]
Draft = Annotated[str | None, _option("The small model that guesses, for --speculation draft.", _ENGINE)]
DraftTokens = Annotated[int | None, _option("Tokens guessed at a time; 4.", _ENGINE)]
Conversations = Annotated[
    Path | None, _option("Keep chats that name a conversation in this directory, over the server's end.")
]
ConversationsGigabytes = Annotated[
    float | None, _option("Room for those chats, in equal parts for all keys; the oldest go first; 16.")
]
SharedCache = Annotated[
    bool | None, _option("One prefix cache for all API keys, which then see what others have asked; off.", _ENGINE)
]
MaxBodyBytes = Annotated[
    int | None, _option("Larger requests are refused; 32 bytes a token of the context, from 4 to 16 MiB.", _CLIENTS)
]
MaxBodiesBytes = Annotated[
    int | None, _option("Of all bodies above 64 KiB that are held at a time; 256 MiB.", _CLIENTS)
]
IgnoreUnknownFields = Annotated[
    bool | None, _option("Ignore fields that are unknown or not supported, and log each name once; off.", _CLIENTS)
]
MaxConnections = Annotated[int | None, _option("For a further one, the oldest idle one is closed; 2048.", _CLIENTS)]
MaxConnectionsPerAddress = Annotated[int | None, _option("The same for each address; 1024.", _CLIENTS)]
RequestSeconds = Annotated[float | None, _option("In which a request must arrive; 60.", _CLIENTS)]
IdleSeconds = Annotated[float | None, _option("After which an idle connection closes; 30.", _CLIENTS)]
StallSeconds = Annotated[float | None, _option("After which a client that takes nothing is cut off; 30.", _CLIENTS)]
KeepAliveSeconds = Annotated[float | None, _option("Between comments while a stream has nothing to say; 5.", _CLIENTS)]
DrainSeconds = Annotated[float | None, _option("For running requests to finish after SIGTERM; 30.", _CLIENTS)]
RequestLog = Annotated[bool | None, _option("A line in the log for each request that has ended; on.")]
LogFormat = Annotated[
    Literal["text", "json"], typer.Option(help="Lines for people, or a JSON object a line with the same facts.")
]
Tp = Annotated[int | None, _option("Ranks that share heads and vocabulary: all of them.", _RANKS, min=1)]
Ep = Annotated[int | None, _option("Ranks that have experts of their own; all, where that goes evenly.", _RANKS, min=1)]
Etp = Annotated[int | None, _option("Ranks that share each expert; all, where ep does not go.", _RANKS, min=1)]
