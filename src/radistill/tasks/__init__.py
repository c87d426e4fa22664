"""Evaluation tasks, one file each: `tasks/translation.py` is named `translation`."""
