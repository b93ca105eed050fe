"""Features of images that no dataset knows: which network makes them, where they are written, who is next to whom."""
