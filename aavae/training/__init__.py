"""Pretraining: the step, the loop, optimizers, schedules, validation, resume, one run in its folder."""
