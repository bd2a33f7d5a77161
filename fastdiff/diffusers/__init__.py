"""What diffusers' users have: its networks, schedulers, pipelines and folders."""
