"""fewstep.prompt."""
