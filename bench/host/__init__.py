"""The machine underneath: commands, the sandbox of namespaces, private Open vSwitch daemons, child processes, the ledger."""
