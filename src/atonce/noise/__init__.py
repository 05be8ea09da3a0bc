"""The noise process: the Karras grid, curricula over it, draws of noise levels, and worlds where every answer is known."""
