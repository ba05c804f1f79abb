"""A soak: writers, pushers and a hub under random faults, and two books that must agree in the end."""
