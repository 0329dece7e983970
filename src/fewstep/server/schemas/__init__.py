"""What the APIs say on the wire; foreign field names stand here and nowhere else."""
