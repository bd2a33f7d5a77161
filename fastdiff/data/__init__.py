"""Training data: pictures of many kinds as one array, in memory or mapped from a file."""
