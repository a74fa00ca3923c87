"""Write the reference of the Python interface as HTML, one page a room: ``python docs/reference.py DIRECTORY``.

Rooms resolve their public names when they are first asked for (PEP 562). pdoc looks only into a module's dictionary, so
every name is put there first.
"""

import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pdoc

import leyden


def main(directory: Path) -> None:
    """Write ``index.html``, ``leyden.html`` and ``leyden/ROOM.html``."""
    rooms = sorted(f"leyden.{room.name}" for room in iter_modules(leyden.__path__) if room.ispkg)
    for name in ("leyden", *rooms):
        module = import_module(name)
        for public in getattr(module, "__all__", ()):
            setattr(module, public, getattr(module, public))
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("leyden", *rooms, output_directory=directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
