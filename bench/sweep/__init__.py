"""Sweeps: one scenario at many points, each several times; here, or on many machines."""
