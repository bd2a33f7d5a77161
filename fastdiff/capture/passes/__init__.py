"""Passes: functions from a graph to the same function by fewer or faster operations, changed in place."""
