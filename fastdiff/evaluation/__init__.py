"""How near a model's samples are to pictures that it was not trained on."""
