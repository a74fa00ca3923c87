"""docs/serving.md names every option of ``leyden serve`` with its default, and no other."""

import re
from pathlib import Path

import typer

from leyden.cli.app import app
from leyden.serve.config import EngineConfig
from leyden.serve.http import ServerSettings

DOCS = Path(__file__).parents[3] / "docs"


def test_every_option_is_documented_with_its_default() -> None:
    text = (DOCS / "serving.md").read_text(encoding="utf-8").partition("## Options")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `--([a-z0-9-]+)` \|(.*?)\| .+ \|$", text, re.MULTILINE))
    command = typer.main.get_command(app).commands["serve"]  # pyright: ignore[reportAttributeAccessIssue]
    options = {each.opts[0].removeprefix("--"): each for each in command.params if each.opts[0].startswith("--")}
    assert rows.keys() == options.keys() - {"help"}
    fields = {**EngineConfig.model_fields, **ServerSettings.model_fields}
    for name, told in rows.items():
        field = fields.get(name.replace("-", "_"))
        default = options[name].default if field is None else field.default
        said = "" if default in (None, ()) else {True: "on", False: "off"}.get(default, str(default))
        assert told.strip() == said, name


def test_every_setting_of_the_server_has_an_option() -> None:
    command = typer.main.get_command(app).commands["serve"]  # pyright: ignore[reportAttributeAccessIssue]
    names = {each.name for each in command.params}
    assert ServerSettings.model_fields.keys() - names == {"api_keys", "allow_origins", "stream_buffer"}
    assert {"api_key", "allow_origin"} <= names


def test_options_that_the_pages_name_exist() -> None:
    command = typer.main.get_command(app).commands["serve"]  # pyright: ignore[reportAttributeAccessIssue]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    elsewhere = {"--nproc-per-node", "--resume", "--no-cache-dir", "--extra-index-url", "--create-home", "--env-file"}
    elsewhere |= {"--no-install-recommends", "--time"}
    for page in ("serving.md", "deploying.md"):
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", (DOCS / page).read_text(encoding="utf-8")))
        assert named - known <= elsewhere, page
