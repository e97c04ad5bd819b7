"""Data sets: sources that are read in pieces and sinks that are staged, then published; one file a format or place."""
