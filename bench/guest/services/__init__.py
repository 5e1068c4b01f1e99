"""The guest's network services as state machines without sockets, so that their state can move with the guest.

Empty on purpose: :mod:`bench.guest.services.pattern` is useful without the rest. The entry points are in
:mod:`bench.guest.services.registry`.
"""
