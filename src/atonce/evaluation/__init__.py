"""Numbers that can be trusted: distances, kernels, manifolds, neighbours, self-consistency, and the records they go into."""
