"""fewstep.models."""
