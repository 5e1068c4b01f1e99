"""What is wrong with a topology that was asked for."""

from __future__ import annotations


class TopologyError(ValueError):
    """A topology cannot be loaded or used; the message says why, in one sentence."""
