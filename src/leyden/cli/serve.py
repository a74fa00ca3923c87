"""``leyden serve``: a model over HTTP, by OpenAI's API."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from leyden.cli.options import Device

_ENGINE = "Engine"
_CLIENTS = "Clients"
_RANKS = "Several ranks, under torchrun"


def _option(help: str, panel: str | None = None, **more: Any) -> Any:
    """An option that says nothing where it is left out: defaults are those of the settings it belongs to."""
    return typer.Option(help=help, rich_help_panel=panel, show_default=False, **more)


def serve(
    model: Annotated[str, typer.Argument(help="A model's directory in any layout, or a hub id.")],
    host: Annotated[str | None, _option("Address to listen on; 127.0.0.1. Others need an API key.")] = None,
    port: Annotated[int | None, _option("Port; 8000. 0 takes a free one.")] = None,
    api_key: Annotated[
        list[str] | None,
        _option("Whoever has this key may ask; may be given several times.", envvar="LEYDEN_API_KEY"),
    ] = None,
    api_key_file: Annotated[Path | None, _option("A file with one key a line.")] = None,
    served_model_name: Annotated[
        list[str] | None, _option("What clients call the model; its directory's name by default. Several are possible.")
    ] = None,
    int8: Annotated[
        Literal["none", "layers", "all"], typer.Option(help="Weights in 8 bits: of the layers, or of everything.")
    ] = "none",
    device: Device = None,
    max_sequences: Annotated[int | None, _option("Sequences read or generated at once; 32.", _ENGINE)] = None,
    step_tokens: Annotated[int | None, _option("Tokens that one step reads at most; 2048.", _ENGINE)] = None,
    max_queue: Annotated[int | None, _option("Requests that wait at most; 256.", _ENGINE)] = None,
    kv_gigabytes: Annotated[
        float | None, _option("Memory for keys and values; half of what is free, or less.", _ENGINE)
    ] = None,
    cache_gigabytes: Annotated[
        float | None, _option("Memory for the prefix cache's snapshots; a tenth of what is free.", _ENGINE)
    ] = None,
    swap_gigabytes: Annotated[
        float | None, _option("Host memory for sequences that make room; a tenth of what is free.", _ENGINE)
    ] = None,
    decoder: Annotated[str | None, _option("What reads single tokens: auto, native or torch.", _ENGINE)] = None,
    speculation: Annotated[str | None, _option("Where guesses come from: none, prompt or draft.", _ENGINE)] = None,
    draft: Annotated[str | None, _option("The small model that guesses, for --speculation draft.", _ENGINE)] = None,
    draft_tokens: Annotated[int | None, _option("Tokens guessed at a time; 4.", _ENGINE)] = None,
    conversations: Annotated[
        Path | None, _option("Keep chats that name a conversation in this directory, over the server's end.")
    ] = None,
    max_body_bytes: Annotated[int | None, _option("Larger requests are refused; 16 MiB.", _CLIENTS)] = None,
    max_connections: Annotated[int | None, _option("Further ones are closed; 2048.", _CLIENTS)] = None,
    request_seconds: Annotated[float | None, _option("In which a request must arrive; 60.", _CLIENTS)] = None,
    idle_seconds: Annotated[float | None, _option("After which an idle connection closes; 30.", _CLIENTS)] = None,
    stall_seconds: Annotated[
        float | None, _option("After which a client that takes nothing is cut off; 30.", _CLIENTS)
    ] = None,
    keep_alive_seconds: Annotated[
        float | None, _option("Between comments while a stream has nothing to say; 5.", _CLIENTS)
    ] = None,
    drain_seconds: Annotated[
        float | None, _option("For running requests to finish after SIGTERM; 30.", _CLIENTS)
    ] = None,
    request_log: Annotated[bool | None, _option("A line in the log for each request that has ended; on.")] = None,
    tp: Annotated[int | None, _option("Ranks that share heads and vocabulary; all of them.", _RANKS, min=1)] = None,
    ep: Annotated[
        int | None, _option("Ranks that have experts of their own; all, where that goes evenly.", _RANKS, min=1)
    ] = None,
    etp: Annotated[
        int | None, _option("Ranks that share each expert; all, where ep does not go.", _RANKS, min=1)
    ] = None,
) -> None:
    """Serve a model by OpenAI's API, with a chat page at /; without an API key, to this machine alone."""
    from leyden.checkpoint import load
    from leyden.core.device import find_device
    from leyden.core.errors import UserError
    from leyden.core.launch import launched
    from leyden.serve import Engine
    from leyden.serve.config import EngineConfig
    from leyden.serve.http import ServerSettings, listen
    from leyden.serve.http.conversations import make_directory
    from leyden.serve.http.run import run_server

    given = {name: value for name, value in locals().items() if value is not None}
    keys = [*(api_key or []), *(_keys(api_key_file) if api_key_file else [])]
    settings = ServerSettings.parse({**_of(ServerSettings, given), "api_keys": keys}, "serve")
    config = EngineConfig.parse(_of(EngineConfig, given), "serve")
    shown = {"root": model, "names": served_model_name or [Path(model).name or model], "settings": settings}
    axes = {name: given[name] for name in ("tp", "ep", "etp") if name in given}
    if launched().world > 1:
        if device is not None:
            raise UserError("each of several ranks takes the GPU of its number, or the CPU; leave out --device.")
        _serve_on_ranks(model, int8, draft, config, shown, axes)
        return
    _check_alone(model, axes)
    where = find_device(device)
    if settings.conversations is not None:
        make_directory(settings.conversations)
    bound = listen(settings)  # before the model is loaded, which may take long
    weights, tokenizer = load(model, int8=int8, device=where)
    engine = Engine(weights, tokenizer, config, draft=None if draft is None else load(draft, device=where)[0])
    run_server(bound, engine, **shown)


def _check_alone(model: str, axes: dict[str, int]) -> None:
    """Refuse ``axes`` of several ranks where one process was started, with the command that starts them."""
    from leyden.core.errors import UserError
    from leyden.core.launch import Launch

    world = max(axes.get("tp", 1), axes.get("ep", 1) * axes.get("etp", 1))
    if world > 1:
        options = " ".join(f"--{name} {size}" for name, size in axes.items())
        command = Launch(world=world, local_world=world).command(f"serve {model} {options}")
        raise UserError(f"{options} is for {world} ranks, and this is one process; start them: {command}")


def _serve_on_ranks(
    model: str,
    int8: Literal["none", "layers", "all"],
    draft: str | None,
    config: Any,
    shown: dict[str, Any],
    axes: dict[str, int],
) -> None:
    """As many ranks as torchrun started have a part of the model each; the first one answers."""
    from leyden.checkpoint import load, read_config
    from leyden.core.errors import UserError
    from leyden.core.launch import launched
    from leyden.parallel import ParallelConfig, team_of
    from leyden.parallel.serving import serving_plan
    from leyden.serve.http import listen
    from leyden.serve.http.run import run_server
    from leyden.serve.ranks import engine_of

    if draft is not None or config.speculation == "draft":
        raise UserError("several ranks draft no guesses by a small model; leave out --draft, or serve with one rank.")
    if shown["settings"].conversations is not None:
        raise UserError(
            "several ranks keep no conversations on disk; leave out --conversations, or serve with one rank."
        )
    with team_of(serving_plan(ParallelConfig.parse(axes, "serve"), launched().world, read_config(model))) as team:
        assert team.mesh is not None
        bound = listen(shown["settings"]) if team.rank == 0 else None
        weights, tokenizer = load(model, int8=int8, mesh=team.mesh, device=team.mesh.device)
        with engine_of(team, weights, tokenizer, config) as engine:
            if engine is not None and bound is not None:
                run_server(bound, engine, **shown)


def _of(settings: Any, given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in settings.model_fields if name in given}


def _keys(file: Path) -> list[str]:
    from leyden.core.errors import UserError

    try:
        keys = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file {file} cannot be read: {error}.") from None
    if not keys:
        raise UserError(f"--api-key-file {file} holds no key; write one a line.")
    return keys
