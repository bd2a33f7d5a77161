"""The contenders of each kind of case."""
