"""Hugging Face directories to Megatron checkpoints and back, through one table of names."""

from latxa_megatron.model import device

device.prepare()  # before any module of this room imports megatron-core
