"""Room of models: encoders and networks. `encoder` needs numpy only; `tabular` and `build` need torch."""
