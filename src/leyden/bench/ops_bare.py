"""``python -m leyden bench ops`` where the command line's packages are not installed: same options, same exit codes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from leyden.bench.ops import RedTestsError, run_ops
from leyden.core.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Exit code 1 for red tests, 2 for a user's mistake."""
    parser = argparse.ArgumentParser("python -m leyden bench ops", description="GPU kernels beside the hardware floor.")
    parser.add_argument("--only", metavar="REGEX", help="measure the rows whose name it is found in")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: checks that all of it runs")
    options = parser.parse_args(arguments)
    try:
        run_ops(options.only, options.output, quick=options.quick)
    except RedTestsError as red:
        print(red, file=sys.stderr)
        sys.exit(1)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
