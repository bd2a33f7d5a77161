"""Operators: each a public function, a reference in plain torch, and Triton kernels. Imports torch and triton only."""
