"""The CPU form: a graph becomes a plan of C kernels' calls with all memory laid out beforehand, and a loop of steps."""
