"""The guest as a client of servers outside: flows that it runs itself, and that move with it."""
