"""Links: what was asked for, how it is applied (htb, netem or the delay line), read back and calibrated."""
