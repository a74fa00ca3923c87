"""``python -m leyden``: the same as the ``leyden`` command; ``bench gpu`` runs without the command line's packages."""

import importlib.util
import sys


def main() -> None:
    """Where typer is not installed (a bare GPU machine), ``bench gpu`` is read by a plain parser of its own."""
    if sys.argv[1:3] == ["bench", "gpu"] and importlib.util.find_spec("typer") is None:
        from leyden.bench.gpu.bare import main as bare

        bare(sys.argv[3:])
    else:
        from leyden.cli import main as command_line

        command_line()


if __name__ == "__main__":
    main()
