"""What every other room may use: errors, files, random streams, processes, progress and records."""
