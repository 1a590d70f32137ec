"""What is fitted to features: heads, calibration, what is out of distribution."""
