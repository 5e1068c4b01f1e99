"""The real source engine, which stands still (SIGSTOP) when it first enters a state that ``HOLD_AT`` names, and after
the first event of each name in ``HOLD_AFTER``.

So a test can act exactly there, however busy the machine is; SIGCONT lets it go on.
"""

import os
import signal
import sys

from bench.clock import NS_PER_S
from bench.migration import peer, source
from bench.migration.engine import Reporter, engine_main
from bench.migration.states import State, StateMachine

HOLD_AT = {State(name) for name in os.environ["HOLD_AT"].split()}
HOLD_AFTER = set(os.environ["HOLD_AFTER"].split())
peer.CONNECT_NS = 2 * NS_PER_S  # a destination that cannot be reached is given up soon
begin, enter, tell = StateMachine.__init__, StateMachine.enter, Reporter.__call__


def stand_still(there, places=HOLD_AT):
    if there in places:
        places.discard(there)
        os.kill(os.getpid(), signal.SIGSTOP)


def begin_and_stand_still(self, *args, **options):
    begin(self, *args, **options)
    stand_still(self.state)


def enter_and_stand_still(self, state):
    enter(self, state)
    stand_still(state)


def tell_and_stand_still(self, name, *args, **data):
    tell(self, name, *args, **data)
    stand_still(name, HOLD_AFTER)


StateMachine.__init__ = begin_and_stand_still
StateMachine.enter = enter_and_stand_still
Reporter.__call__ = tell_and_stand_still

if __name__ == "__main__":
    sys.exit(engine_main(source.SourceEngine, "source"))
