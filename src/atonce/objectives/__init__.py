"""Objectives: what a training step minimises, one method family a file, and the distances they use."""
