"""What watches: client flows, frames at switch ports, the forwarding tables, the load of the machine."""
