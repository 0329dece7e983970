"""fewstep.checkpoint."""
