"""How good a model is: prompt accuracy, distances between sets of images, diversity, reconstruction, reports.

The metrics are pure functions, numpy arrays in, numbers out; what draws and what loads networks is apart from
them.
"""
