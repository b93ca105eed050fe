"""The small files of a run folder, a module each."""
