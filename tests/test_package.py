"""The package from outside: its public names, and that each part imports no more than it needs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import leyden

ROOT = Path(__file__).parents[1]

BARE_MACHINE = """
import sys

class Blocked:
    "Stands for everything that a machine with torch alone does not have."
    names = {"pydantic", "rich", "typer", "tokenizers", "transformers", "safetensors", "tomli_w", "jinja2", "pyarrow",
             "zstandard", "matplotlib", "prompt_toolkit", "huggingface_hub"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocked())
import torch
from leyden.ops import lightning_attention, lightning_attention_step, lightning_slopes

slopes = lightning_slopes(2, 0, 3)
q, k, v = torch.randn(3, 1, 5, 2, 4).unbind()
out, state = lightning_attention(q, k, v, slopes)
_, before = lightning_attention(q[:, :4], k[:, :4], v[:, :4], slopes)
last, after = lightning_attention_step(q[:, 4], k[:, 4], v[:, 4], slopes, before)
torch.testing.assert_close(last, out[:, 4])
torch.testing.assert_close(after, state)
print(*(name for name in sys.modules if name.startswith("leyden.") and name.count(".") == 1))
"""


def python(program: str) -> str:
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_the_ops_need_torch_alone() -> None:
    assert set(python(BARE_MACHINE).split()) <= {"leyden.core", "leyden.ops"}


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert python("import sys, leyden; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))") == "set()"


def test_importing_the_ops_imports_no_compiler() -> None:
    program = "import sys, leyden.ops; print({'triton', 'torch._dynamo', 'torch._inductor'} & set(sys.modules))"
    assert python(program) == "set()"


def test_public_names_resolve() -> None:
    for name in leyden.__all__:
        assert getattr(leyden, name) is not None
    assert set(leyden.__all__) <= set(dir(leyden))
    assert leyden.load.__module__.startswith("leyden.checkpoint")


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'; it has Cache, Engine"):
        leyden.lode  # noqa: B018 # pyright: ignore[reportAttributeAccessIssue]


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert leyden.__version__ == project["version"]


def test_every_room_lists_what_is_public() -> None:
    for init in (ROOT / "src" / "leyden").glob("*/__init__.py"):
        if init.parent.name in ("core", "cli"):
            continue
        text = init.read_text(encoding="utf-8")
        assert text.startswith('"""'), init
        assert "__all__" in text, init


def test_the_readme_and_the_map_list_every_room_on_its_floor() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    built = {path.name for path in (ROOT / "src" / "leyden").iterdir() if (path / "__init__.py").exists()}
    floors = {
        room: floor
        for floor, layer in enumerate(reversed(contract["layers"]))
        for room in re.findall(r"(?<!\()\b\w+", layer)
    }
    assert floors.keys() == built
    listed = re.search(r"^floor  room\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert listed is not None
    lines = {int(line.split()[0]): line for line in listed[1].splitlines()}
    assert all(re.search(rf"\b{room}  +\w", lines[floor]) for room, floor in floors.items())
    rows = re.findall(r"^\| (\d) \| \[`(\w+)`\]", (ROOT / "docs" / "map.md").read_text(), flags=re.MULTILINE)
    assert {room: int(floor) for floor, room in rows} == floors
