"""fewstep.training.objectives."""
