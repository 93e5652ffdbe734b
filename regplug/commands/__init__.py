"""The command line. click is imported in this folder and nowhere else."""
