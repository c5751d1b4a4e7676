"""The whole road on one machine, through the functions that the commands call."""
