"""Training data: small pictures, kept whole in memory as uint8."""
