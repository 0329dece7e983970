"""Names of networks' tensors: those of the authors' files and those of diffusers, as two-way maps."""
