"""Tables and pictures of results, and the figures that they show."""
