"""Room of models: encoders and networks. `encoder` needs numpy only; the rest needs torch."""
