"""Pictures from a run."""
