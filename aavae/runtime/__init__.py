"""What the machine gives: device, precision, randomness, processes, signals, threads, files."""
