"""``leyden serve``: a model over HTTP, by OpenAI's API."""

import re
from pathlib import Path
from typing import Any, Literal

from leyden.cli import serve_options
from leyden.cli.options import Device


def serve(
    model: serve_options.Model,
    host: serve_options.Host = None,
    port: serve_options.Port = None,
    uds: serve_options.Uds = None,
    root_path: serve_options.RootPath = None,
    allow_origin: serve_options.AllowOrigin = None,
    api_key: serve_options.ApiKey = None,
    api_key_file: serve_options.ApiKeyFile = None,
    served_model_name: serve_options.ServedModelName = None,
    lora: serve_options.Lora = None,
    int8: serve_options.Int8 = "none",
    device: Device = None,
    max_sequences: serve_options.MaxSequences = None,
    step_tokens: serve_options.StepTokens = None,
    max_queue: serve_options.MaxQueue = None,
    kv_gigabytes: serve_options.KvGigabytes = None,
    cache_gigabytes: serve_options.CacheGigabytes = None,
    swap_gigabytes: serve_options.SwapGigabytes = None,
    decoder: serve_options.Decoder = None,
    speculation: serve_options.Speculation = None,
    draft: serve_options.Draft = None,
    draft_tokens: serve_options.DraftTokens = None,
    conversations: serve_options.Conversations = None,
    conversations_gigabytes: serve_options.ConversationsGigabytes = None,
    shared_cache: serve_options.SharedCache = None,
    ignore_unknown_fields: serve_options.IgnoreUnknownFields = None,
    max_body_bytes: serve_options.MaxBodyBytes = None,
    max_bodies_bytes: serve_options.MaxBodiesBytes = None,
    max_connections: serve_options.MaxConnections = None,
    max_connections_per_address: serve_options.MaxConnectionsPerAddress = None,
    request_seconds: serve_options.RequestSeconds = None,
    idle_seconds: serve_options.IdleSeconds = None,
    stall_seconds: serve_options.StallSeconds = None,
    keep_alive_seconds: serve_options.KeepAliveSeconds = None,
    drain_seconds: serve_options.DrainSeconds = None,
    request_log: serve_options.RequestLog = None,
    log_format: serve_options.LogFormat = "text",
    tp: serve_options.Tp = None,
    ep: serve_options.Ep = None,
    etp: serve_options.Etp = None,
) -> None:
    """Serve a model by OpenAI's API, with a chat page at /; without an API key, to this machine alone."""
    from leyden.core.errors import UserError
    from leyden.core.launch import launched
    from leyden.serve.config import EngineConfig
    from leyden.serve.http import ServerSettings
    from leyden.serve.http.request_log import log_as

    log_as(log_format)
    given = {name: value for name, value in locals().items() if value is not None}
    keys = [*(api_key or []), *(_keys(api_key_file) if api_key_file else [])]
    more = {"api_keys": keys, "allow_origins": allow_origin or []}
    settings = ServerSettings.parse({**_of(ServerSettings, given), **more}, "serve")
    config = EngineConfig.parse({**_section(model), **_of(EngineConfig, given)}, "serve")
    shown = {"root": model, "names": served_model_name or [_name_of(model)], "settings": settings}
    axes = {name: given[name] for name in ("tp", "ep", "etp") if name in given}
    if launched().world > 1:
        if device is not None:
            raise UserError("each of several ranks takes the GPU of its number, or the CPU; leave out --device.")
        if lora:
            raise UserError(
                "several ranks serve no adapters; leave --lora out, serve with one rank, or merge the adapter: leyden "
                f"convert {model} DIR --layout leyden --lora DIR"
            )
        _serve_on_ranks(model, int8, draft, config, shown, axes)
        return
    _check_alone(model, axes)
    _serve_alone(model, int8, device, draft, config, shown, lora or [])


def _serve_alone(
    model: str,
    int8: Literal["none", "layers", "all"],
    device: str | None,
    draft: str | None,
    config: Any,
    shown: dict[str, Any],
    lora: list[str],
) -> None:
    """One process has the whole model."""
    from leyden.checkpoint import load
    from leyden.core.device import find_device
    from leyden.core.log import logger
    from leyden.serve import Engine
    from leyden.serve.adapters import add_adapters, named_adapters
    from leyden.serve.http import listen
    from leyden.serve.http.conversations import make_directory
    from leyden.serve.http.server import run_server

    settings = shown["settings"]
    adapters = named_adapters(lora, shown["names"])
    where = find_device(device)
    if settings.conversations is not None:
        make_directory(settings.conversations)
    bound = listen(settings)  # before the model is loaded, which may take long
    logger(__name__).info("%s is being loaded.", model)
    weights, tokenizer = load(model, dtype="auto", int8=int8, device=where)
    if adapters:
        add_adapters(weights, tokenizer, model, adapters)
        logger(__name__).info("adapters: %s.", ", ".join(f"{name} ({path})" for name, path in adapters.items()))
    engine = Engine(
        weights, tokenizer, config, draft=None if draft is None else load(draft, dtype="auto", device=where)[0]
    )
    run_server(bound, engine, **shown)


def _check_alone(model: str, axes: dict[str, int]) -> None:
    """Refuse ``axes`` of several ranks where one process was started, with the command that starts them."""
    from leyden.core.errors import UserError
    from leyden.core.launch import Launch

    world = max(axes.get("tp", 1), axes.get("ep", 1) * axes.get("etp", 1))
    if world > 1:
        options = [word for name, size in axes.items() for word in (f"--{name}", str(size))]
        command = Launch(world=world, local_world=world).command("serve", model, *options)
        raise UserError(f"{' '.join(options)} is for {world} ranks, and this is one process; start them: {command}")


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
    from leyden.core.log import logger
    from leyden.parallel import ParallelConfig, team_of
    from leyden.parallel.serving import serving_plan
    from leyden.serve.http import listen
    from leyden.serve.http.server import run_server
    from leyden.serve.ranks import engine_of

    if draft is not None or config.speculation == "draft":
        raise UserError("several ranks draft no guesses by a small model; leave out --draft, or serve with one rank.")
    if shown["settings"].conversations is not None:
        raise UserError(
            "several ranks keep no conversations on disk; leave out --conversations, or serve with one rank."
        )
    with team_of(serving_plan(ParallelConfig.parse(axes, "serve"), launched().world, read_config(model))) as rank_group:
        assert rank_group.mesh is not None
        bound = listen(shown["settings"]) if rank_group.rank == 0 else None
        if bound is not None:
            logger(__name__).info("%s is being loaded.", model)
        weights, tokenizer = load(model, int8=int8, mesh=rank_group.mesh, device=rank_group.mesh.device)
        with engine_of(rank_group, weights, tokenizer, config) as engine:
            if engine is not None and bound is not None:
                run_server(bound, engine, **shown)


def _section(model: str) -> dict[str, Any]:
    """What ``[serve]`` says in the recipe of the run that ``model`` is of."""
    from leyden.checkpoint.origin import recipe_of
    from leyden.core.log import logger
    from leyden.serve.config import EngineConfig

    section = recipe_of(Path(model)).get("serve", {}) if Path(model).is_dir() else {}
    if section:
        EngineConfig.parse(section, f"the recipe of the run {model}: [serve]")
        said = ", ".join(f"{name} = {value!r}" for name, value in section.items())
        logger(__name__).info("[serve] in the recipe of %s says %s.", model, said)
    return section


def _name_of(model: str) -> str:
    """What clients call a model: of a run or a checkpoint of one the run's name, else the directory's or the hub's."""
    path = Path(model).resolve() if Path(model).is_dir() else Path(model)
    while path.name in ("final", "checkpoints") or re.fullmatch(r"step_\d+", path.name):
        path = path.parent
    return path.name or "model"


def _of(settings: Any, given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in settings.model_fields if name in given}


def _keys(file: Path) -> list[str]:
    from leyden.core.errors import UserError
    from leyden.core.log import logger

    try:
        if file.stat().st_mode & 0o077:
            logger(__name__).warning("--api-key-file %s can be read by others; chmod 600 keeps its keys.", file)
        keys = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file {file} cannot be read: {error}.") from None
    if not keys:
        raise UserError(f"--api-key-file {file} holds no key; write one a line.")
    return keys
