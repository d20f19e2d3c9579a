"""The demonstration: flights out of New York in 2013, from landed days to weights under live traffic."""
