"""Parts of a solve: layouts of states, limits, safeguards and custom gradients."""
