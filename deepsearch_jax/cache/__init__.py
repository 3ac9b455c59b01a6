"""Correct solutions that searches found, kept on the device, and the choice of what the next round works on."""
