"""A typed client of the service: needs httpx and numpy, neither torch nor a web framework."""
