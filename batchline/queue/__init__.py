"""The queue: nudges and wake-ups. Hints only: no job needs them to be done, only to be done soon."""
