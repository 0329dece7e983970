"""fewstep.engine.backends."""
