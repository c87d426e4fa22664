"""Metrics, one file each: `metrics/bleu.py` is named `bleu`."""
