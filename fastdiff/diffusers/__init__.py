"""What diffusers' users have: its networks, schedulers and pipelines."""
