"""fewstep.training."""
