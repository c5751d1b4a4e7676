"""Start `latxa train` on several processes, here or on a cluster, and say how it does."""
