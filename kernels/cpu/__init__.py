"""The C kernels of the CPU, what compiles them, and what calls them. Imports torch only."""
