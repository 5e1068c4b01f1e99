"""The destination engine: ``python -m bench.migration.destination --channel-fd N --events FILE --log FILE``.

Command ``listen`` {address, port, host, guest_socket, guest_events, guest_log, bridge, lease_path, ticket,
link_timeout_ns?, security?, credentials?}; port 0 takes a free one. It serves one migration: creates the skeleton guest
in its own network namespace, places what arrives, loads the device state, and on HANDOVER has the guest claim the
lease, which is the ownership point (:mod:`bench.migration.session`).
"""

from __future__ import annotations

import contextlib
import sys

from bench.errors import MigrationError
from bench.host.channel import Message
from bench.migration.arrival import Arrival
from bench.migration.carriers import load_carrier
from bench.migration.engine import Engine, engine_main
from bench.migration.place import Place


class DestinationEngine(Engine):
    """Serves ``listen``."""

    name = "destination"

    def run(self) -> None:
        with contextlib.ExitStack() as stack:
            self._run(stack)

    def _run(self, stack: contextlib.ExitStack) -> None:
        while True:
            command, args = self.first_command("listen")
            try:
                place = Place.from_json(args)
                reception = load_carrier(place.security).receive(place, stack)
            except MigrationError as error:
                self.channel.send_error(command, str(error))
                continue
            break
        self.channel.send_reply(command, {"port": reception.port, "hints": dict(reception.hints)})
        self.report("listening", port=reception.port)
        arrival = Arrival(place, reception, self.channel, self.report)
        arrival.run()
        self.report("finished", outcome=arrival.outcome, reason=arrival.reason, cost=arrival.cost())
        self.drain(self._after)

    def _after(self, message: Message) -> None:
        self.refuse(message, "the migration has ended")


if __name__ == "__main__":
    sys.exit(engine_main(DestinationEngine, "destination"))
