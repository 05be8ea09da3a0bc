"""The verbs of the command line: one function each, whose arguments tyro reads; loaded when they are called."""
