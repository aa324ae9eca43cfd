"""How good the slots are."""
