"""Networks in Flax Linen; the rest of the package sees init and apply functions only."""
