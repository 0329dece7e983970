"""fewstep.cli."""
