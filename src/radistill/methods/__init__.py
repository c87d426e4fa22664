"""Methods, one file each: `methods/radis.py` is named `radis`."""
