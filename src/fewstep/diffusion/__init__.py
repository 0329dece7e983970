"""Numerical core: schedules, predictions, grids, noise, guidance, solvers and the one sampling loop.

Arrays in, arrays out. numpy arrays and torch tensors go through the same code (array-api-compat); nothing
here imports torch. Times and schedule coefficients stay on the host in float64 and are cast once, where they
meet a tensor.
"""
