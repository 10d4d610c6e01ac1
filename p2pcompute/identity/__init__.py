"""p2pcompute."""
