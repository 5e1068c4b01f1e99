"""Servers outside: what the guest's own flows talk to."""
