"""The paths of the interface, one file for each group."""
