"""What solves are made of: layouts of states, limits, safeguards, gradients of one's own."""
