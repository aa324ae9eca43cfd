"""Measurements of slotattn_fast against its reference and its peers; run from the repository root."""
