"""fewstep.data."""
