"""What a wheel has besides the files of the package: the native bodies, compiled for each level of processors.

Where no C++ compiler is at hand, or it does not know a level, the wheel goes without, and says so: what is missing is
compiled at first use, or runs in PyTorch. An editable installation compiles nothing.
"""

import importlib.util
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface  # pyright: ignore[reportMissingImports]


class NativeBodies(BuildHookInterface):
    """The hook that hatchling calls."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and put the libraries into the wheel, which is then one of this platform."""
        if version == "editable":
            return
        build = _build(Path(self.root))
        self._scratch = tempfile.TemporaryDirectory(prefix="leyden-wheel-")
        made = []
        for name, level in build.LEVELS.get(platform.machine(), {}).items():
            library = Path(self._scratch.name, f"{name}-{build.sources_hash()}.so")
            self.app.display_info(f"compiling the native ops for {name}")
            try:
                build.compile_library(build.Compiler.find(), (*level.flags, "-s"), library)
                made.append(library)
            except build.BuildError as reason:
                self.app.display_warning(f"the wheel has no native ops for {name}: {reason}")
        for library in made:
            build_data["force_include"][str(library)] = f"leyden/ops/prebuilt/{library.name}"
        if made:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The libraries are in the wheel by now."""
        if version != "editable":
            self._scratch.cleanup()


def _build(root: Path) -> ModuleType:
    """``leyden.ops.native.build`` by itself: the package needs PyTorch, which building a wheel does not."""
    spec = importlib.util.spec_from_file_location("leyden_build", root / "src/leyden/ops/native/build.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
