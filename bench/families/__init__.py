"""Loops of the libraries that people have their networks from, and fastdiff's of the same networks."""
