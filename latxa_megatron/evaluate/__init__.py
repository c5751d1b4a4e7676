"""Numbers and samples from a Hugging Face directory, computed with transformers alone: a check on all that made it."""
