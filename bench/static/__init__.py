"""What is known of kernels and networks without running them: shapes, bytes, generated code."""
