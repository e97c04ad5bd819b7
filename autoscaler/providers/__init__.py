"""Where workers are launched: providers behind one contract."""
