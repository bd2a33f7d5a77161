"""Models into files and out of them. No code from a file is ever run."""
