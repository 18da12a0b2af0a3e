"""Studies: several runs that are compared, and what they say together."""
