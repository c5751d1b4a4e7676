"""From an open-weight LLM and a corpus in a low-resource language to a trained, evaluated, served model."""

__version__ = "0.1.0"
