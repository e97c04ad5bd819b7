"""The scheduler: one leader, one chore a file. A dead scheduler slows work down and stops none of it."""
