"""Llama models on megatron-core. Importing this room makes megatron-core usable on this machine (see device.py)."""

from latxa_megatron.model import device

device.prepare()
