"""The CUDA form: a graph by the Triton kernels and the library's convolutions."""
