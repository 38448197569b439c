"""What runs a version: the C++ runtime, a server's configuration, programs that time it."""
