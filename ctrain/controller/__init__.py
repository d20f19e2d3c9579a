"""Room of the controller: journal, state, policy, and the actor that steps them."""
