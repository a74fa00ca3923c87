"""``python -m leyden bench gpu`` where the command line's packages are not installed: same options, same exit codes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from leyden.bench.gpu.run import run_gpu
from leyden.core.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Exit code 1 for red tests, 2 for a user's mistake."""
    parser = argparse.ArgumentParser("python -m leyden bench gpu", description="GPU kernels beside the hardware floor.")
    parser.add_argument("--minutes", type=float, default=8, help="how long all of it may take (8)")
    parser.add_argument("--only", metavar="REGEX", help="measure the rows whose name it is found in")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where to write the figures as JSON, row by row")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: checks that all of it runs")
    options = parser.parse_args(arguments)
    try:
        result = run_gpu(options.only, options.output, minutes=options.minutes, quick=options.quick)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(int(result.has_red_tests))
