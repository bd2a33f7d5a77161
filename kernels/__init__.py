"""Operators: for each one name, a short plain-torch reference. Imports torch and triton only."""
