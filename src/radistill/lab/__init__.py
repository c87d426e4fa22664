"""The lab: a closed world in which a skill can be learned and abilities lost, both measured exactly, in minutes.

It is a wind tunnel, not the sky: what it shows must be checked on larger models.
"""
