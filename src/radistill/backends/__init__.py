"""Backends that write text, one file each: `backends/transformers.py` is named `transformers`."""
