"""Scenes drawn from a seed, in the looks of the published data sets; nothing is downloaded."""
