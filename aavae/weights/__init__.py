"""Files to models and back: checkpoints, encoder files, those of the released code and of libraries."""
