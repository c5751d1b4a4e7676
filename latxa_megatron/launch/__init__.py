"""Start `latxa train` on several processes."""
