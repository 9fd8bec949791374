"""Model organisms: small models with a behaviour put in by hand,
and the program that trains them.
"""
