"""One optimizer step, repeated. loop.py is the place to start reading."""

from latxa_megatron.model import device

device.prepare()  # before any module of this room imports megatron-core
