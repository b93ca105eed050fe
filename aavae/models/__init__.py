"""What is learned: encoders, decoders, methods and their losses."""
