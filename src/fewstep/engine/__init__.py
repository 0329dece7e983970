"""fewstep.engine."""
