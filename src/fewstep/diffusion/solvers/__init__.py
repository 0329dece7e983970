"""fewstep.diffusion.solvers."""
