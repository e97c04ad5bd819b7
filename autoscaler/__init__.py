"""The autoscaler: observes the queue and says how many workers it wants. It advises; it launches nothing yet."""
