"""The settings of a server besides its engine's: address, keys, and limits for each client."""

import ipaddress
import re
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from leyden.core.config import Config

_ORIGIN = re.compile(r"https?://[^/\s?#@A-Z*]+")
_KEY = re.compile(r"[!-~]+")


class ServerSettings(Config):
    """The options of ``leyden serve`` that are not the engine's."""

    host: str = "127.0.0.1"
    """Address to listen on. One that other machines reach needs a key."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    uds: Path | None = None
    """Path of a Unix socket to listen on instead. Who may ask is then who may write to it, if there are no keys."""
    root_path: str = Field(default="", pattern=r"^(/[^/?#\s]+)*$")
    """The path under which a proxy shows the server, such as ``/llm``; requests may come with it and without it."""
    allow_origins: tuple[str, ...] = ()
    """Web pages of these origins (``https://chat.example.org``) may ask from a browser; no others may."""
    api_keys: tuple[str, ...] = Field(default=(), repr=False)
    """Any of these opens the API, as ``Authorization: Bearer KEY``. None: everybody on this machine may ask."""
    max_body_bytes: int | None = Field(default=None, ge=1024)
    """A larger body is refused with 413, before it has been read. None: 32 bytes for each token of the model's context,
    4 MiB at least and 16 MiB at most."""
    max_bodies_bytes: int = Field(default=256 << 20, ge=1024)
    """Of all bodies above 64 KiB that are held at a time; a request that needs more is refused with 503."""
    ignore_unknown_fields: bool = False
    """Leave fields out of account that are unknown or not supported, and log each name once; else they are refused."""
    max_connections: int = Field(default=2048, ge=1)
    """For a further connection, the oldest that asks nothing is closed; where all ask something, the further one."""
    max_connections_per_address: int = Field(default=1024, ge=1)
    """The same for the connections that come from one address, as all of a proxy do."""
    request_seconds: float = Field(default=60, gt=0)
    """A request must have arrived whole in this time, from the connection's start or its first byte."""
    idle_seconds: float = Field(default=30, gt=0)
    """A connection without a request is closed after this."""
    stall_seconds: float = Field(default=30, gt=0)
    """A client that takes nothing of its response for so long is cut off, and its request ended."""
    keep_alive_seconds: float = Field(default=5, gt=0)
    """While a stream has nothing to say (a long prompt, a queue), a comment goes out this often; it tells how many
    tokens of the prompt were read."""
    stream_buffer: int = Field(default=1024, ge=1)
    """Events that wait for a slow reader; when one more comes, the request ends."""
    drain_seconds: float = Field(default=30, ge=0)
    """After SIGTERM, running requests may finish in this time."""
    request_log: bool = True
    """Log a line for each request that has ended; what was asked and answered is not in it."""
    conversations: Path | None = None
    """Directory in which chats that name a conversation are kept over the server's end. None: they are not."""
    conversations_gigabytes: float = Field(default=16, gt=0)
    """Room for them, of which each API key has an equal part; the oldest of a key make room for its newer ones."""
    shared_cache: bool = False
    """One prefix cache for all API keys. Each then sees, by ``cached_tokens`` and the time, what others have asked."""

    @field_validator("allow_origins")
    @classmethod
    def _exact(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError(
                "an origin is a scheme, a host in lower case and possibly a port: https://chat.example.org"
            )
        return origins

    @field_validator("api_keys")
    @classmethod
    def _printable(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_KEY.fullmatch(key) for key in keys):
            raise ValueError("an API key is one word of printable ASCII characters")
        return keys

    @model_validator(mode="after")
    def _loopback_without_key(self) -> Self:
        if not self.api_keys and self.uds is None and not is_loopback(self.host):
            raise ValueError(
                f"without an API key the server listens on this machine alone (--host 127.0.0.1), not on {self.host}: "
                "whoever reaches it could use it. Give a key with --api-key, --api-key-file or LEYDEN_API_KEY"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine, by a name or address that cannot be another."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
