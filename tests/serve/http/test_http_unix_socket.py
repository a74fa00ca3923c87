"""A server on a Unix socket."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from leyden.core.errors import UserError
from leyden.serve.http import ServerSettings, listen

Serve = Callable[..., str]


def test_requests_through_it(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "leyden.sock"
    umask = os.umask(0o007)
    try:
        assert serve(uds=path) == f"unix:{path}"
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o770
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://chat.example.org/v1/models").status_code == 200
        assert client.post("http://leyden/v1/completions", json={"prompt": "x"}).status_code == 200
        page = {"origin": "https://evil.example"}
        assert client.post("http://leyden/v1/completions", json={"prompt": "x"}, headers=page).status_code == 403


def test_what_is_there_already(tmp_path: Path) -> None:
    path = tmp_path / "leyden.sock"
    settings = ServerSettings.parse({"uds": path}, "serve")
    with listen(settings) as bound:
        bound.listen()
        with pytest.raises(UserError, match="in use"):
            listen(settings)
    listen(settings).close()  # nobody listens there any more
    path.unlink()
    path.write_text("precious")
    with pytest.raises(UserError, match="--uds"):
        listen(settings)
    assert path.read_text() == "precious"
