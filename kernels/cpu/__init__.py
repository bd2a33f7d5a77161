"""Kernels in C for CPUs, with the code that compiles and calls them. Imports torch only."""
