"""One short script per paper table or figure, and what they share."""
