"""The command line. Only here errors become exit codes.

Each command is a module of this package; a new one is a new file, and its name in :data:`bench.cli.app.COMMANDS`.

========  =============================================================================
0         the guest moved (or the command did what it says)
1         the migration failed or was cancelled, an expectation did not hold, or something broke during the run
2         bad input, or this machine lacks something: nothing was built
130, 143  stopped by Ctrl-C or SIGTERM, after tearing everything down; the result says what happened until then
========  =============================================================================
"""

from bench.cli.app import app, main
from bench.cli.common import exit_code, find_scenario

__all__ = ["app", "exit_code", "find_scenario", "main"]
