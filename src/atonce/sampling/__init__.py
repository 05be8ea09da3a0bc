"""Samplers over any callable f(x, sigma): restarts for consistency models, ODE solvers for denoisers, default time points."""
