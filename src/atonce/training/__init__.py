"""Training: recipes, the loop, moving averages, checkpoints and the run folder."""
