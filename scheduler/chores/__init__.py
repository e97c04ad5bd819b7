"""The chores, one a file. Each is safe to run twice at once and says how often it wants to run."""
