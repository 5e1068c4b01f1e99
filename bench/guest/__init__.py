"""Guests: a process guest with memory, vCPUs, services and kernel TCP connections that all move."""
