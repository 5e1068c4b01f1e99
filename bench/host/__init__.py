"""The machine underneath: commands, the sandbox, private Open vSwitch daemons, child processes, the ledger."""
