"""The tabs of the studio, one file each: ``build(studio)`` makes a tab's components inside the current Blocks."""
