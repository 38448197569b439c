"""The tables and pictures of results, and the figures that they are of."""
