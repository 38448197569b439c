"""What every command-line program does: its flags' help, signals, processes, whole files."""
