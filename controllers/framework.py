"""Picks the OpenFlow framework: Ryu 4.34, or os-ken, its maintained fork with the same interface under another name.

An app imports from here and works under both. The framework is the one that this process has loaded already (an app
under the framework's own launcher), else the one that the environment variable ``BENCH_FRAMEWORK`` names, else Ryu.

Two things stand between these packages and a current Python:

- Ryu imports ``eventlet.wsgi.ALREADY_HANDLED``, which eventlet removed in 0.31; older releases of eventlet do not
  import on Python 3.10. Ryu uses it in its web server only, as a marker to compare with, so any object will do.
- os-ken ships no launcher any more: see :mod:`.launch`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

PACKAGES = {"ryu": "ryu", "os-ken": "os_ken"}
FRAMEWORK_VARIABLE = "BENCH_FRAMEWORK"


def chosen() -> str:
    """``ryu`` or ``os-ken``. :raises ValueError: when the environment names another."""
    for framework, package in PACKAGES.items():
        if f"{package}.base.app_manager" in sys.modules:
            return framework
    framework = os.environ.get(FRAMEWORK_VARIABLE, "ryu")
    if framework not in PACKAGES:
        raise ValueError(f"{FRAMEWORK_VARIABLE}={framework}: it must be one of {', '.join(PACKAGES)}")
    return framework


def prepare(framework: str) -> None:
    """Make *framework* importable; before anything of it is imported. :raises ImportError: when it is not installed."""
    if framework == "ryu":
        wsgi: Any = importlib.import_module("eventlet.wsgi")
        if not hasattr(wsgi, "ALREADY_HANDLED"):
            wsgi.ALREADY_HANDLED = object()
    importlib.import_module(PACKAGES[framework])


def load(module: str) -> Any:
    """A module of the framework by its name below the package: ``load("lib.hub")``."""
    framework = chosen()
    prepare(framework)
    return importlib.import_module(f"{PACKAGES[framework]}.{module}")


def app_class() -> Any:
    """The base class of apps."""
    manager = load("base.app_manager")
    return manager.RyuApp if chosen() == "ryu" else manager.OSKenApp


def handles(event: str, *states: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates an app's method as the handler of an OpenFlow event.

    :param event: its class in ``controller.ofp_event``, such as ``EventOFPPacketIn``.
    :param states: of the switch's connection: ``config``, ``main``, ``dead``.
    """
    handler = load("controller.handler")
    dispatchers = {
        "config": handler.CONFIG_DISPATCHER,
        "main": handler.MAIN_DISPATCHER,
        "dead": handler.DEAD_DISPATCHER,
    }
    decorate: Callable[[Callable[..., None]], Callable[..., None]] = handler.set_ev_cls(
        getattr(load("controller.ofp_event"), event), [dispatchers[state] for state in states]
    )
    return decorate
