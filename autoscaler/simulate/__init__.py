"""Simulation: the very policies and guards over a trace of arrivals, in minutes instead of days."""
