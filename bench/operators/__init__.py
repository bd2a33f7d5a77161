"""Operators alone, at the shapes of the networks that have them."""
