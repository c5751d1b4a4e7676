"""What a run needs and takes on GPUs, before it is submitted: memory by pipeline stage, and time by kind of work."""
