"""A whole small production on one machine, of real parts, for the demo and the tests."""
