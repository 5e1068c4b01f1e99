"""The source engine: ``python -m bench.migration.source --channel-fd N --events FILE --log FILE``.

Commands: ``migrate`` (once), ``cancel`` and ``recover`` (a post-copy whose network failed); see
:class:`bench.migration.order.Order` for the arguments. The events it sends, and what ``finished`` says, are listed in
:mod:`bench.migration.driver`; who runs the guest when, in :mod:`bench.migration.session`.
"""

from __future__ import annotations

import sys

from bench.errors import MigrationError
from bench.host.channel import Message
from bench.migration.engine import Engine, engine_main
from bench.migration.order import Order
from bench.migration.session import Session


class SourceEngine(Engine):
    """Serves ``migrate``, ``cancel`` and ``recover``."""

    name = "source"

    def run(self) -> None:
        while True:
            command, args = self.first_command("migrate")
            try:
                order = Order.from_json(args)
            except MigrationError as error:
                self.channel.send_error(command, error.message)
                continue
            break
        self.channel.send_reply(command)
        outcome = Session(order, self.channel, self.report).run()
        self.report("finished", **outcome.to_json())
        self.drain(self._after)

    def _after(self, message: Message) -> None:
        if message.get("command") in ("cancel", "recover"):
            self.channel.send_reply(int(message.get("id", 0)), {"accepted": False})
        else:
            self.refuse(message, "the migration has ended")


if __name__ == "__main__":
    sys.exit(engine_main(SourceEngine, "source"))
