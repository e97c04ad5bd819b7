"""The autoscaler: observes the queue, decides how many workers it wants, launches and drains through a ledger."""
