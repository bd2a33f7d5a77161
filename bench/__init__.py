"""Benchmarks, and the published systems that they and the tests compare with."""
