"""The migration engine: wire format, transport, policy, the source's and the destination's process, announcing."""
