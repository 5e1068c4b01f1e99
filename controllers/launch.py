"""Starts a controller: ``python controllers/launch.py --framework ryu|os-ken --app learning --port 6653``.

It stands in for ``ryu-manager`` (which no longer starts with a current eventlet) and ``osken-manager`` (which os-ken
dropped), and runs any app: ``--app learning`` is the bench's own, ``--app FILE.py`` a user's, loaded by the
framework's app manager.

Beyond that it says when it listens (event ``listening`` {host, port, framework}; port 0 takes a free one) and which
switches are connected (:mod:`.connections`); a port in use ends it with one line and exit status 2. With
``--channel-fd`` these events also go to the inherited socket, and the end of that socket ends the controller.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

if not __package__:  # run as a script: our own directory is no place to import from, its parent is
    _here = Path(__file__).resolve().parent
    sys.path[:] = [str(_here.parent), *(entry for entry in sys.path if Path(entry or ".").resolve() != _here)]

from controllers import framework, observe, orders

APPS = {
    "learning": "controllers.learning",
    "stale": "controllers.stale",
    "proactive": "controllers.proactive",
    "activation": "controllers.activation",
}
EXIT_USAGE = 2
_log = logging.getLogger("bench.controller")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with status 2 and a message when it is wrong, as argparse does."""
    parser = argparse.ArgumentParser(prog="launch.py", description="Start an OpenFlow controller.")
    parser.add_argument("--framework", choices=tuple(framework.PACKAGES), default="ryu")
    parser.add_argument("--app", default="learning", help=f"{', '.join(APPS)}, or the path of an app's .py file")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=6653, help="TCP port to listen on; 0 takes a free one")
    parser.add_argument("--channel-fd", type=int, help="inherited Unix stream socket for lifecycle events")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.port <= 65535:
        parser.error(f"--port {arguments.port}: a number from 0 to 65535")
    if arguments.app not in APPS:
        path = Path(arguments.app)
        if not path.is_file() or path.suffix != ".py":
            parser.error(f"--app {arguments.app}: neither {', '.join(APPS)} nor a readable .py file")
        if "," in str(path.resolve()):
            parser.error(f"--app {arguments.app}: the framework takes a comma as the end of a name; rename the file")
    return arguments


def _end(status: int) -> NoReturn:
    """End at once. Nothing is buffered, and the hubs' threads cannot be joined (os-ken's cannot even be stopped)."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"controller: {message}\n")
    observe.observer()("failed", {"reason": message})
    _end(EXIT_USAGE)


def _announce_listening(framework_name: str, host: str, port: int) -> None:
    """Make the framework's server listen at *host*:*port* and say so when it does.

    The framework has no hook for it and swallows a failure to listen, hence the subclass put in its place.
    """
    controller = framework.load("controller.controller")

    class Server(controller.StreamServer):  # type: ignore[name-defined]
        def __init__(self, _address: Any, *args: Any, **kwargs: Any) -> None:
            try:
                super().__init__((host, port), *args, **kwargs)
            except OSError as error:
                _fail(f"cannot listen on {host} port {port}: {error.strerror or error}")
            bound = self.server.getsockname()[1]
            observe.observer()("listening", {"host": host, "port": bound, "framework": framework_name})

    controller.StreamServer = Server


def _follow_channel(hub: Any, fd: int) -> None:
    """Lifecycle events go up the socket, orders come down; its end is ours."""
    channel = socket.socket(fileno=fd)
    observe.observer().set_channel(channel)

    def wait_for_end() -> None:
        lines = orders.Lines()
        try:
            while data := channel.recv(4096):
                lines.feed(data)
        except OSError:
            pass
        _end(0)

    hub.spawn(wait_for_end)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run until a signal or the end of the channel."""
    arguments = parse_arguments(argv)
    os.environ[framework.FRAMEWORK_VARIABLE] = arguments.framework
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        framework.prepare(arguments.framework)
        hub = framework.load("lib.hub")
    except ImportError as error:
        _fail(f"{arguments.framework} is not usable: {error}")
    hub.patch()

    def stop(_number: int, _frame: FrameType | None) -> None:
        _end(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if arguments.channel_fd is not None:
        _follow_channel(hub, arguments.channel_fd)

    package = framework.PACKAGES[arguments.framework]
    told = {"framework": arguments.framework, "version": version(arguments.framework), "app": arguments.app}
    observe.observer()("started", {**told, "pid": os.getpid()})
    config = framework.load("cfg").CONF
    manager = framework.load("base.app_manager").AppManager
    _announce_listening(arguments.framework, arguments.host, arguments.port)
    config(args=[], project="bench", default_config_files=[])
    # The frameworks listen on a second, older port as well unless they are told one; ours replaces it.
    config.set_override("ofp_tcp_listen_port", arguments.port or 6653)
    app = APPS.get(arguments.app) or str(Path(arguments.app).resolve())
    try:
        manager.run_apps(["controllers.connections", app, f"{package}.controller.ofp_handler"])
    except BaseException:  # an app may raise anything, SystemExit too
        traceback.print_exc()
        _fail(f"the app {arguments.app} failed: {traceback.format_exc(limit=-1).strip().splitlines()[-1]}")
    _fail(f"the app {arguments.app} ended")


if __name__ == "__main__":
    main()
