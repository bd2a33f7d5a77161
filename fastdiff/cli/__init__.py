"""The command fastdiff."""
