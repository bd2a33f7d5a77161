"""Schedules, step tables and the samplers, each a formula. Numbers alone."""
