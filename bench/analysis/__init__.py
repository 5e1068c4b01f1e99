"""From a timeline to numbers: outage, its budget, relearning. Pure: no root, no Mininet."""
