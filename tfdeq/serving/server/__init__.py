"""Running a version: the C++ runtime, a server's configuration, and timing programs."""
