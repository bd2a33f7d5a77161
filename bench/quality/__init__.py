"""How near sampled images are to real ones, and 16-bit images to float32 ones."""
