"""fewstep.diffusion."""
